"""What a forward allocates, what the host expects of it, its own Z-Image, and what streaming copies."""

from __future__ import annotations

from bench import memory_in_host, streamed
from bench.rows import row
from tests.host import inside

LOWEST, HIGHEST = 0.9, 1.3


def run() -> list[dict]:
    return [*rows(inside.run(memory_in_host.__file__)), *streamed.counted()]


def rows(found: dict) -> list[dict]:
    """Of what `memory_in_host.measure` found."""
    counted = "GPU" if found["device"] == "cuda" else "counted on fake tensors"
    ratios = {
        f"{r['side']}x{r['side']}, batch {r['batch']}, {r['caption']} tokens"
        + (f", {r['references']} references" if "references" in r else ""): r["expected"] / r["peak"]
        for r in found["rows"]
    }
    facts = [
        row(f"expected / peak, {name}", ratio, "x", f">= {LOWEST}", f"{counted}; <= {HIGHEST} below")
        for name, ratio in ratios.items()
    ]
    facts.append(row("... the largest of them", max(ratios.values()), "x", f"<= {HIGHEST}", counted))
    first = next(r for r in found["rows"] if (r["side"], r["batch"]) == (1024, 1))
    for one in found["rows"]:
        if (one["batch"], one["caption"]) == (1, first["caption"]) and "references" not in one:
            name = f"peak of a forward, {one['side']}x{one['side']}"
            facts.append(row(name, one["peak"] / 2**20, "MiB", None, counted))
    against = "the host's own Z-Image"
    facts.append(row("... against the host's", first["peak"] / found["native"], "x", "<= 1.0", against))
    return facts
