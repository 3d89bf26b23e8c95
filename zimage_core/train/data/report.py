"""What was looked at and found: as text, as JSON, and as a contact sheet."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .picture_files import PictureError, flattened, open_picture
from .records import PictureRecord

LINES = 200  # of findings in the text; the JSON has all
CELL = 128  # pixels of a picture on the sheet
LABEL = 14  # ... of the line below it
COLUMNS = 10
ROWS = 12
DROPPED, NOTED, FINE = "#c03020", "#d09020", "white"


@dataclass(frozen=True)
class Found:
    """One finding of one picture: a line of the report."""

    path: str
    kind: str
    reason: str
    drops: bool


@dataclass
class Report:
    """Filled by each part in turn. `sections` has what a part says beyond its findings."""

    pictures: int = 0
    kept: int = 0
    found: list[Found] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sections: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Pictures by kind of finding, the most frequent first; of equals the one that was found first."""
        found = dict.fromkeys((f.path, f.kind) for f in self.found)
        return dict(Counter(kind for _, kind in found).most_common())

    def as_json(self) -> str:
        values = {**vars(self), "found": [vars(found) for found in self.found], "counts": self.counts()}
        return json.dumps(values, indent=1, ensure_ascii=False) + "\n"

    def text(self) -> str:
        """Lines in English."""
        lines = [f"{self.pictures:,} pictures, {self.kept:,} stay."]
        lines += [f"Ran: {'; '.join(self.ran) or 'nothing'}."]
        lines += [f"Did not run: {line}" for line in self.missing]
        lines += [f"  {count:>7,}  {kind}" for kind, count in self.counts().items()]
        for title, values in self.sections.items():
            lines += [f"{title}:", *_section(values)]
        shown = [*(f"{f.path}: {f.kind}: {f.reason}{'' if f.drops else ' (stays)'}" for f in self.found)]
        lines += _first("Found", shown) + _first("Problems of the source", self.problems)
        return "\n".join(lines) + "\n"


def _section(values: Any) -> list[str]:
    if isinstance(values, dict):
        return [f"  {key}: {value}" for key, value in values.items()]
    return [f"  {line}" for line in values]


def _first(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"  ... and {len(lines) - LINES:,} more, see the JSON"] if len(lines) > LINES else []
    return [f"{title}:", *(f"  {line}" for line in lines[:LINES]), *more]


def contact_sheet(records: Sequence[PictureRecord], found: Sequence[Found]) -> Image.Image:
    """Pictures with a finding first, framed in red where they are dropped; others where there is room."""
    by_path: dict[str, list[Found]] = {}
    for finding in found:
        by_path.setdefault(finding.path, []).append(finding)
    marked = [record for record in records if str(record.path) in by_path]
    others = [record for record in records if str(record.path) not in by_path]
    room = COLUMNS * ROWS
    shown = _spread(marked, max(room - len(others), room * 3 // 4))
    shown += _spread(others, room - len(shown))
    rows = max(1, -(-len(shown) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * (CELL + 6), rows * (CELL + 6 + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, record in enumerate(shown):
        x, y = number % COLUMNS * (CELL + 6), number // COLUMNS * (CELL + 6 + LABEL)
        findings = by_path.get(str(record.path), [])
        colour = DROPPED if any(f.drops for f in findings) else NOTED if findings else FINE
        pen.rectangle((x, y, x + CELL + 5, y + CELL + 5), fill=colour)
        image = _small(record.path)
        sheet.paste(image, (x + 3 + (CELL - image.width) // 2, y + 3 + (CELL - image.height) // 2))
        label = ", ".join(dict.fromkeys(f.kind for f in findings)) or os.path.basename(record.path)
        pen.text((x + 3, y + CELL + 6), _plain(label)[:22], fill="black", font_size=11)
    return sheet


def _spread(records: list[PictureRecord], count: int) -> list[PictureRecord]:
    if len(records) <= count:
        return records
    return [records[k * len(records) // count] for k in range(max(count, 0))]


def _small(path: Path) -> Image.Image:
    try:
        image = flattened(open_picture(path))
    except PictureError:
        image = Image.new("RGB", (CELL, CELL), "#808080")
    image.thumbnail((CELL, CELL), Image.Resampling.BOX)
    return image


def _plain(text: str) -> str:
    """Pillow's own letters are ASCII."""
    return text.encode("ascii", "replace").decode()
