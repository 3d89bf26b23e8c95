"""What a data set is, read and written.

It is read from a folder with a .txt beside each picture, from a jsonl, or from musubi-tuner's TOML.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .picture_files import LIMITS, Limits
from .records import CAPTION, DataError, DataSet, PictureRecord
from .sources import read

__all__ = ["LIMITS", "DataError", "DataSet", "Limits", "PictureRecord", "load", "write"]


def load(source: Path, root: Path | None = None, limits: Limits = LIMITS) -> DataSet:
    """The data set in a folder, a .jsonl or a .toml.

    root: where given, nothing outside this folder is read: a path or link that leads out of it is named in
    the problems and left out. Raises DataError where there is no picture at all.
    """
    return read(Path(source), None if root is None else Path(root), limits)


def write(records: Iterable[PictureRecord], file: Path) -> None:
    """A jsonl with one object per picture, also the dropped ones; `load` and musubi-tuner read it."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    with open(partial, "w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(_row(record, file.parent), ensure_ascii=False) + "\n")
    os.replace(partial, file)


def _row(record: PictureRecord, folder: Path) -> dict[str, Any]:
    """Paths inside the file's own folder are relative, so that the folder can be moved."""
    place = os.path.abspath(record.path)
    inside = os.path.abspath(folder) + os.sep
    row: dict[str, Any] = {"image_path": Path(place.removeprefix(inside)).as_posix()}
    if record.captions:
        row["caption"] = record.captions[0]
    if len(record.captions) > 1 or record.kinds:
        kinds = record.kinds or (CAPTION,) * len(record.captions)
        row["captions"] = [{"kind": k, "text": t} for k, t in zip(kinds, record.captions, strict=True)]
    if record.repeats != 1:
        row["repeats"] = record.repeats
    if record.weight != 1.0:
        row["weight"] = record.weight
    if record.drop:
        row["drop"] = record.drop
    return row
