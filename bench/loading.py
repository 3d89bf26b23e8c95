"""A transformer file of the published widths: what a cold load reads, takes and costs, beside the host."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import tempfile
from pathlib import Path

from bench import loading_file
from bench.rows import row
from tests.host import inside
from zimage_core import S3DiTConfig

ROUNDS = 3
SPARE = 0.5e9  # bytes beside the tensors, as the design allows
SCRIPT = Path(__file__).with_name("loading_in_host.py")


def run() -> list[dict]:
    folder = Path(tempfile.mkdtemp(prefix="zimage-loading-"))
    try:
        config = fitting(S3DiTConfig(), available() * 2 // 5, shutil.disk_usage(folder).free // 2)
        path = loading_file.write(folder / "transformer.safetensors", config)
        found = {loader: [] for loader in ("ours", "native")}
        for index in range(ROUNDS):
            for loader in list(found) if index % 2 == 0 else reversed(list(found)):
                found[loader].append(measured(loader, path))
        return rows(found, path.stat().st_size, config.n_layers)
    finally:
        shutil.rmtree(folder)


def measured(loader: str, path: Path) -> dict:
    """loader: ours or native. In a process of its own, with nothing of the file in memory."""
    return inside.run(str(SCRIPT), loader, str(path))


def available() -> int:
    """Bytes of memory that programs can have now."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def fitting(config: S3DiTConfig, memory: int, disk: int) -> S3DiTConfig:
    """With as many layers as memory and disk have room for, in bytes."""
    sizes = {n: loading_file.size(dataclasses.replace(config, n_layers=n)) for n in (1, 2)}
    layer = sizes[2] - sizes[1]
    layers = min(config.n_layers, 1 + (min(memory, disk) - sizes[1]) // layer)
    if layers < 1:
        raise SystemExit(f"bench loading needs {sizes[1] / 1e9:.1f} GB twice, in memory and on the disk")
    return dataclasses.replace(config, n_layers=layers)


def rows(found: dict[str, list[dict]], size: int, layers: int) -> list[dict]:
    """Of what `measured` found for each loader, round by round."""
    file = f"{size / 1e9:.1f} GB, {layers} of {S3DiTConfig().n_layers} layers, {ROUNDS} cold loads"
    facts = []
    for loader, name in (("ours", "our loader"), ("native", "the host's own")):
        each = found[loader]
        bars = ("<= 1.02", f"<= {SPARE / 1e9:g}") if loader == "ours" else (None, None)
        # the least of the loads: what other programs push out of memory before it is used is read again
        read = [max(one["read"], one["called"]) / size for one in each]
        beside = max(one["anonymous"] - one["tensors"] for one in each) / 1e9
        seconds = statistics.median(one["seconds"] for one in each)
        facts += [
            row(f"{name}: bytes read / file", min(read), "x", bars[0], file),
            row(f"{name}: bytes read / file, the most", max(read), "x", None, file),
            row(f"{name}: memory beside the tensors", beside, "GB", bars[1], "the most, not of the file"),
            row(f"{name}: time", seconds, "s, median", None, file),
        ]
    pairs = [a["seconds"] / b["seconds"] for a, b in zip(found["ours"], found["native"], strict=True)]
    facts.append(row("our time / the host's", statistics.median(pairs), "x", "<= 1.0", "median of pairs"))
    return facts
