"""What is in a data set, for the node that chooses it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import comfy.model_management as management
import comfy.utils
import numpy as np
import torch

from ....zimage_core.train.data.inspection import ALL_KINDS, UNREADABLE, Plan, inspect
from ....zimage_core.train.data.profile import Thresholds
from ....zimage_core.train.data.report import Report, contact_sheet
from ....zimage_core.train.data.store import DataError, DataSet
from .data_folders import TrainingData

MOST_LINES = 20  # of findings, and of problems
SIZES_NAMED = 6
NAMED = 3  # small pictures
ONLY_NAMED = frozenset({"small"})  # how large pictures must be is up to the resolution
FEW = 8  # pictures, of which a LoRA learns well


def looked_at(data: TrainingData, leave_out: bool) -> tuple[TrainingData, torch.Tensor, str]:
    """(the data, a contact sheet [1,H,W,3], a report).

    leave_out: pictures that are faulty or copies are not trained on; else they are only named.
    Raises DataError where none is left.
    """
    records = data.data.records
    bar = comfy.utils.ProgressBar(len(records))

    def watch(done: int, total: int) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    kept = ONLY_NAMED if leave_out else frozenset(ALL_KINDS) - {UNREADABLE}
    found, report = inspect(data.data, Plan(keep=kept, watch=watch))
    bar.update_absolute(len(records), len(records))
    made = replace(data, data=DataSet(tuple(found), data.data.problems))
    if not made.data.pictures:
        raise DataError(f"nothing is left of {data.name}: turn leave_out off to see what was found.")
    sheet = np.asarray(contact_sheet(found, report.found), np.float32) / 255
    return made, torch.from_numpy(sheet)[None], _text(made, report)


def _text(data: TrainingData, report: Report) -> str:
    pictures = data.data.pictures
    out = report.pictures - len(pictures)
    said = [f"{data.name}: {len(pictures)} pictures" + (f", {out} left out" if out else "") + "."]
    sizes = Counter(f"{width}x{height}" for width, height in (picture.size for picture in pictures))
    named = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(SIZES_NAMED))
    more = len(sizes) - SIZES_NAMED
    said.append(f"Sizes: {named}" + (f" and {more} more" if more > 0 else "") + ".")
    missing = sum(not picture.captions for picture in pictures)
    said.append(f"Captions: {len(pictures) - missing} of {len(pictures)} pictures have one.")
    if missing:
        said.append(
            "One without a caption learns from the trigger alone, and from no words where there is no "
            "trigger: write a .txt file beside each."
        )
    if len(pictures) < FEW:
        said.append(f"{FEW} pictures and more are better: of few, a LoRA learns the pictures themselves.")
    counts = ", ".join(f"{count} {kind}" for kind, count in report.counts().items())
    said.append(f"Found: {counts or 'no faults and no copies'}.")
    said += [f"Not looked for: {line}" for line in report.missing]
    small = [Path(f.path).name for f in report.found if f.kind in ONLY_NAMED]
    if small:
        listed = ", ".join(small[:NAMED]) + (f" and {len(small) - NAMED} more" if len(small) > NAMED else "")
        said.append(
            f"Small are those with a side below {Thresholds().side} pixels ({listed}): good enough for a "
            "resolution as small as they are."
        )
    findings = [
        f"- {Path(f.path).name}: {f.kind}, {f.reason}".replace(f"{Path(f.path).parent}{os.sep}", "")
        + (" (left out)" if f.drops else "")
        for f in report.found
        if f.kind not in ONLY_NAMED
    ]
    unread = {f.path for f in report.found if f.kind == UNREADABLE}  # named above
    problems = [line for line in report.problems if line.partition(": ")[0] not in unread]
    inside = os.path.commonpath([record.path.parent for record in data.data.records]) + os.sep
    named = [f"- {line.replace(inside, '')}" for line in problems]
    return "\n".join([*said, *_first(findings), *_first(named)])


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], *([f"- and {more} more"] if more > 0 else [])]
