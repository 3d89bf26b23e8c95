"""The table and the chart of docs/performance.md from a file that `bench speed --json FILE` wrote.

    python -m bench.published bench/results/DATE-cpu-speed.json

What stands between the two marks of each page is replaced; the rest is written by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.cases import SEPARATORS, TEXTS, from_row, peer
from bench.chart import Bar, svg

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {"en": "performance.md", "zh": "performance.zh.md"}
CHART = "performance{}.svg"
BEGIN, END = "<!-- measured: python -m bench.published -->", "<!-- end of what was measured -->"
GAIN = 0.02  # less is no difference, however sure


def verdict(row: dict[str, Any]) -> str:
    """Whether ours is faster; open where too few rounds, or busy ones, leave the interval around 1 wide."""
    low, high = row["low"], row["high"]
    if low is None:
        return "open"
    if high < 1 and row["value"] < 1 - GAIN:
        return "faster"
    if low > 1 and row["value"] > 1 + GAIN:
        return "slower"
    return "even" if high - low <= 2 * GAIN or abs(row["value"] - 1) <= GAIN else "open"


def compared(found: dict[str, Any]) -> list[dict]:
    """The rows of ours beside another's."""
    return [row for row in found["rows"] if row.get("peer") in TEXTS["peers"]]


def table(found: dict[str, Any], language: str) -> str:
    columns = TEXTS["columns"][language]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in compared(found):
        memory = f"{row['ours_mib'] / row['peer_mib']:.2f}" if row["peer_mib"] else "-"
        sure = f"{row['low']:.3f} - {row['high']:.3f}" if row["low"] is not None else "-"
        cells = [from_row(row).called(language), peer(row["peer"], language), f"{row['value']:.3f}", sure]
        cells += [f"{row['ours_ms']:.4g} ms", memory, TEXTS["verdicts"][verdict(row)][language]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def note(found: dict[str, Any], language: str) -> str:
    rows = compared(found)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    given = {"date": found["date"], "command": f"`{found['command']}`", "device": found["device"]}
    given |= {"versions": versions, "rounds": len(rows), "busy": sum(row["busy"] > 0 for row in rows)}
    return TEXTS["notes"]["measured"][language].format(**given)


def chart(found: dict[str, Any], language: str) -> str:
    bars = []
    for row in compared(found):
        label = SEPARATORS[language].join([from_row(row).called(language), peer(row["peer"], language)])
        ends = (row["value"], row["value"]) if row["low"] is None else (row["low"], row["high"])
        bars.append(Bar(label, row["value"], *ends, verdict(row)))
    return svg(TEXTS["chart"]["title"][language], bars)


def chart_name(language: str) -> str:
    return CHART.format("" if language == "en" else f".{language}")


def page(text: str, found: dict[str, Any], language: str) -> str:
    """The page with what was measured in its place. Raises ValueError for a page without the marks."""
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"the page lacks the lines {BEGIN} and {END}")
    picture = f"![{TEXTS['chart']['title'][language]}]({chart_name(language)})"
    parts = (BEGIN, note(found, language), picture, table(found, language), END)
    return before + "\n\n".join(parts) + after


def publish(found: dict[str, Any], docs: Path = DOCS) -> None:
    for language, name in PAGES.items():
        path = docs / name
        path.write_text(page(path.read_text(encoding="utf-8"), found, language), encoding="utf-8")
        (docs / chart_name(language)).write_text(chart(found, language), encoding="utf-8")


if __name__ == "__main__":
    publish(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
