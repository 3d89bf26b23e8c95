"""Faults that were planted among 600 emoji: how many are found, and how much of what is found is one.

The thresholds of zimage_core/train/data were fixed on sets of one half of the emoji and of the nano model's
concepts (half 0 in bench.planted); this set is of the other half, by a seed of its own. Also: memory, from
generated pictures, ZIMAGE_DATA_PICTURES of them (10,000 unless it is set).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

from bench.data_memory import in_a_process
from bench.nano import NANO, data_folder
from bench.planted import COPIES, Set, plant
from bench.rows import row
from zimage_core.train import parts
from zimage_core.train.data.caption_match import CaptionJudge
from zimage_core.train.data.duplicates import ENCODING, FILE, PART
from zimage_core.train.data.inspection import CAPTION, DUPLICATE, Plan, inspect
from zimage_core.train.data.picture_look import VisionEmbedder
from zimage_core.train.data.profile import Thresholds
from zimage_core.train.data.report import Report
from zimage_core.train.data.store import load

SEED, HALF = 77, 1
SIDE = 128  # pixels of the nano model's pictures
KIND_OF = dict(zip((f"{kind} of" for kind in (FILE, ENCODING, PART)), COPIES, strict=True))
BAR = ">= 0.95"


def judge() -> CaptionJudge:
    found, _ = parts.from_files(parts.files_in(NANO), whole=True)
    found.model.requires_grad_(False)
    texts: dict[str, object] = {}

    def features(text: str) -> object:
        if text not in texts:
            texts[text] = found.features(text)
        return texts[text]

    return CaptionJudge(found.model, found.encode, features, SIDE)


def found_by_fault(report: Report) -> dict[str, set[str]]:
    """File names by the words of bench.planted."""
    found: dict[str, set[str]] = defaultdict(set)
    for finding in report.found:
        kind = finding.kind
        if kind == DUPLICATE:
            kind = next(fault for start, fault in KIND_OF.items() if finding.reason.startswith(start))
        found[kind].add(Path(finding.path).name)
    return found


def look(made: Set, captions: bool = True) -> dict[str, set[str]]:
    """Everything at once; captions beside pictures only of the things that the nano model knows."""
    data = load(made.folder / "data.jsonl")
    embed = VisionEmbedder(NANO / "vision.safetensors")
    _, report = inspect(data, Plan(Thresholds(side=SIDE // 2), embed=embed))
    found = found_by_fault(report)
    if captions:
        rows = (made.folder / "data.jsonl").read_text("utf-8").splitlines()
        known = [line for line in rows if json.loads(line)["image_path"] in made.known]
        (made.folder / "known.jsonl").write_text("\n".join(known), "utf-8")
        plan = Plan(Thresholds(side=0), skip={"text", "duplicates"}, judge=judge())
        _, report = inspect(load(made.folder / "known.jsonl"), plan)
        found[CAPTION] = found_by_fault(report)[CAPTION]
    return found


def fault_rows(made: Set, found: dict[str, set[str]]) -> list[dict]:
    rows = []
    for fault in sorted(set(made.faults.values())):
        planted = {name for name, kind in made.faults.items() if kind == fault}
        right = len(planted & found[fault])
        against = f"{len(planted)} planted, {len(found[fault])} found"
        rows.append(row(f"{fault}: precision", right / max(len(found[fault]), 1), "share", BAR, against))
        rows.append(row(f"{fault}: recall", right / len(planted), "share", BAR, against))
    return rows


def memory_rows(count: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        seen = in_a_process(Path(folder), count)
    against = f"{count:,} generated pictures of 64 x 64, {seen['minutes']:.0f} minutes"
    return [
        row("memory at its highest", seen["GB"], "GB", "<= 2", against),
        row("memory per picture", seen["bytes per picture"], "bytes", None, against),
        row("re-encoded copies found", seen["copies"] / seen["planted"], "share", BAR, against),
    ]


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        made = plant(Path(folder), data_folder(), SEED, HALF)
        rows = fault_rows(made, look(made))
    return rows + memory_rows(int(os.environ.get("ZIMAGE_DATA_PICTURES", "10000")))
