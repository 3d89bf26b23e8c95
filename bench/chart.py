"""Ratios with their intervals as a drawing: plain SVG that reads on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT = 900, 430, 60
HEAD, LINE, FOOT = 44, 22, 30
INK, FAINT = "#7d8590", "#7d859055"
COLOURS = {"faster": "#2da44e", "even": INK, "open": INK, "slower": "#cf222e"}
TICK = 0.25


@dataclass(frozen=True)
class Bar:
    """A ratio and where it lies; verdict: a key of COLOURS."""

    label: str
    ratio: float
    low: float
    high: float
    verdict: str


def svg(title: str, bars: Sequence[Bar]) -> str:
    """One line for each bar, from 0; a line stands at 1, where both are equally fast."""
    most = max(1.25, *(bar.high for bar in bars))
    ticks = [n * TICK for n in range(int(most / TICK) + 1)]
    bottom = HEAD + LINE * len(bars)
    height = bottom + FOOT

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / most

    def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'

    def text(at: float, y: float, words: str, anchor: str) -> str:
        return f'<text x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        text(10, 20, title, "start"),
    ]
    for tick in ticks:
        parts.append(line(x(tick), HEAD, x(tick), bottom, INK if tick == 1 else FAINT))
        parts.append(text(x(tick), bottom + 18, f"{tick:g}", "middle"))
    for index, bar in enumerate(bars):
        top = HEAD + LINE * index
        middle, colour = top + LINE / 2, COLOURS[bar.verdict]
        width = x(bar.ratio) - x(0)
        parts.append(text(LEFT - 8, middle + 4, bar.label, "end"))
        parts.append(
            f'<rect x="{x(0):.1f}" y="{top + 4}" width="{width:.1f}" height="{LINE - 8}" '
            f'fill="{colour}" fill-opacity="0.45"/>'
        )
        parts.append(line(x(bar.low), middle, x(bar.high), middle, colour, 2))
        parts.append(text(max(x(bar.high), x(bar.ratio)) + 6, middle + 4, f"{bar.ratio:.2f}", "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"
