"""Look at every picture of a data set once: what is wrong with it, and which are copies of others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from . import duplicates
from .caption_match import LEAST, CaptionJudge, JudgeFiles, Judging, fits
from .each_picture import Failed, Item, Map, one_by_one
from .fingerprints import Fingerprints
from .optional import MissingPackage
from .picture_files import LIMITS, Limits
from .picture_look import Embed, Looking, Seen
from .picture_text import TextReader
from .profile import KINDS, TEXT, Finding, Measures, Thresholds, findings
from .records import DataSet, PictureRecord
from .report import Found, Report

log = logging.getLogger(__name__)

UNREADABLE, DUPLICATE, CAPTION = "unreadable", "duplicate", "wrong caption"
ALL_KINDS = (UNREADABLE, *KINDS, DUPLICATE, CAPTION)
MEASURED = tuple(field.name for field in fields(Measures))
EVERY = 30.0  # seconds between two lines of progress


@dataclass(frozen=True)
class Plan:
    """What is looked for.

    keep: kinds that are named and not dropped. skip: "text" or "duplicates". watch: told how many pictures
    of how many are done; what it raises ends it.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    keep: Collection[str] = ()
    skip: Collection[str] = ()
    limits: Limits = LIMITS
    embed: Embed | None = None
    judge: CaptionJudge | JudgeFiles | None = None
    watch: Callable[[int, int], None] | None = None


class Progress:
    """A line now and then, with the time that is left."""

    def __init__(self, what: str) -> None:
        self.what, self.begun, self.said = what, time.monotonic(), time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done and now - self.said >= EVERY:
            self.said = now
            left = (now - self.begun) / done * (total - done)
            log.info("%s: %d of %d, %.0f minutes left", self.what, done, total, left / 60)


def inspect(
    data: DataSet,
    plan: Plan = Plan(),  # noqa: B008
    over: Map = one_by_one,
) -> tuple[list[PictureRecord], Report]:
    """(all records, with what is wrong as `drop`; the report). Pictures that were dropped before stay so.

    over: how pictures are gone through; the result is the same in any order.
    """
    report = Report(problems=list(data.problems))
    records, looked = list(data.records), Looked(len(data.records), plan, report)
    progress, total = Progress("looking at pictures"), len(records)
    todo = (Item(index, record.path) for index, record in enumerate(data.records) if not record.drop)
    begun = sum(bool(record.drop) for record in records)
    if plan.watch:
        plan.watch(begun, total)
    for done, (index, seen) in enumerate(over(looked.looking, todo), begun + 1):
        records[index] = looked.at(index, records[index], seen)
        progress(done, total)
        if plan.watch:
            plan.watch(done, total)
    looked.tell_found(data.records)
    if "duplicates" not in plan.skip:
        looked.copies(records)
    if plan.judge is not None:
        looked.captions(records, Judging(plan.judge, plan.limits), over)
    looked.tell_measures()
    report.pictures = len(records)
    report.kept = sum(not record.drop for record in records)
    return records, report


class Looked:
    """What is known of the pictures so far."""

    def __init__(self, count: int, plan: Plan, report: Report) -> None:
        self.plan, self.report = plan, report
        self.prints, self.quality = Fingerprints(count), [()] * count
        self.measures = np.full((count, len(MEASURED)), np.nan, np.float32)
        self.embeddings: np.ndarray | None = None
        self.found: dict[int, list[Found]] = {}  # by index, since they come in any order
        report.ran.append("profile")
        text = TEXT not in plan.skip
        if text:
            try:
                TextReader()
                report.ran.append("text in pictures")
            except MissingPackage as error:
                report.missing.append(f"text in pictures: {error}")
                text = False
        self.looking = Looking(plan.limits, text, "duplicates" not in plan.skip, plan.embed)

    def at(self, index: int, record: PictureRecord, seen: Seen | Failed) -> PictureRecord:
        """The record with its faults as `drop`."""
        if isinstance(seen, Failed):
            record, self.found[index] = self._told(record, [Finding(UNREADABLE, seen.reason)])
            return record
        if seen.print is not None:
            self.prints.add(index, seen.print)
        if seen.embedding is not None:
            if self.embeddings is None:
                self.embeddings = np.zeros((len(self.quality), len(seen.embedding)), np.float16)
            self.embeddings[index] = seen.embedding
        self.measures[index] = [getattr(seen.measures, name) for name in MEASURED]
        self.quality[index] = _quality(seen.measures, seen.file_bytes, record)
        found = findings(seen.measures, self.plan.thresholds, seen.lines, record.captions)
        record, told = self._told(record, found)
        if told:
            self.found[index] = told
        return record

    def tell_found(self, given: Sequence[PictureRecord]) -> None:
        """What was found up to here goes into the report, in the order of the pictures."""
        for index, record in enumerate(given):
            if record.drop:
                self.report.found.append(Found(str(record.path), UNREADABLE, record.drop, True))
            self.report.found += self.found.pop(index, ())

    def _told(self, record: PictureRecord, found: list[Finding]) -> tuple[PictureRecord, list[Found]]:
        reasons, told = [], []
        for finding in found:
            drops = finding.drops and finding.kind not in self.plan.keep
            told.append(Found(str(record.path), finding.kind, finding.reason, drops))
            if drops:
                reasons.append(f"{finding.kind}: {finding.reason}")
        return replace(record, drop="; ".join(reasons)) if reasons else record, told

    def captions(self, records: list[PictureRecord], judging: Judging, over: Map) -> None:
        """Drop pictures whose caption fits hardly better than those of others."""
        found = fits(records, judging, Progress("captions beside pictures"), over)
        self.report.ran.append(f"captions beside pictures, {len(found):,} of them")
        for index, fit in found.items():
            if fit < LEAST:
                reason = f"it helps the model {fit:.2f} times as much as captions usually do, below {LEAST}"
                records[index], told = self._told(records[index], [Finding(CAPTION, reason)])
                self.report.found += told

    def tell_measures(self) -> None:
        """How the pictures differ in what is measured, for the thresholds to be judged by."""
        seen = self.measures[~np.isnan(self.measures[:, 0])]
        if len(seen):
            low, half, high = np.percentile(seen, (5, 50, 95), axis=0)
            rows = zip(MEASURED, low, half, high, strict=True)
            self.report.sections["Measures (5 %, half, 95 % of the pictures are below)"] = {
                name: ", ".join(f"{value:.4g}" for value in values) for name, *values in rows
            }

    def copies(self, records: list[PictureRecord]) -> None:
        """Drop all but the best of each group; a copy that is faulty is no reason to drop the others."""
        quality = [(not record.drop, *rest) for record, rest in zip(records, self.quality, strict=True)]
        progress = Progress("comparing likely copies")
        found = duplicates.find(self.prints, quality, self.embeddings, progress)
        self.report.ran += [f"duplicates by {', '.join(found.ran)}"]
        self.report.missing += [f"duplicates: {line}" for line in found.missing]
        for copy in found.copies:
            record, kept = records[copy.index], records[copy.kept].path
            reason = f"{copy.kind} of {kept}"
            copied, told = self._told(replace(record, drop=""), [Finding(DUPLICATE, reason)])
            self.report.found += told
            records[copy.index] = replace(record, drop="; ".join(filter(None, (record.drop, copied.drop))))


def _quality(measures: Measures, file_bytes: int, record: PictureRecord) -> tuple:
    """What is better of two copies: more pixels, a caption, the sharper, the less compressed."""
    pixels = measures.width * measures.height
    return pixels, bool(record.captions), round(measures.sharpness, 1), file_bytes
