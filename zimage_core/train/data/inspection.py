"""Look at every picture of a data set once: what is wrong with it, and which are copies of others."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from . import duplicates
from .caption_match import LEAST, CaptionJudge, fits
from .fingerprints import Fingerprints
from .optional import MissingPackage
from .picture_files import LIMITS, Limits, PictureError, open_picture
from .picture_text import TextReader
from .profile import KINDS, TEXT, Finding, Measures, Thresholds, findings, measure
from .records import DataSet, PictureRecord
from .report import Found, Report

log = logging.getLogger(__name__)

UNREADABLE, DUPLICATE, CAPTION = "unreadable", "duplicate", "wrong caption"
ALL_KINDS = (UNREADABLE, *KINDS, DUPLICATE, CAPTION)
MEASURED = tuple(field.name for field in fields(Measures))
EVERY = 30.0  # seconds between two lines of progress

Embed = Callable[[Image.Image], np.ndarray]  # RGB or RGBA -> [width]


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
    judge: CaptionJudge | None = None
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


def inspect(data: DataSet, plan: Plan = Plan()) -> tuple[list[PictureRecord], Report]:  # noqa: B008
    """(all records, with what is wrong as `drop`; the report). Pictures that were dropped before stay so."""
    report = Report(problems=list(data.problems))
    records, looked = list(data.records), Looked(len(data.records), plan, report)
    progress = Progress("looking at pictures")
    for index, record in enumerate(records):
        progress(index, len(records))
        if plan.watch:
            plan.watch(index, len(records))
        if not record.drop:
            records[index] = looked.at(index, record)
        else:
            report.found.append(Found(str(record.path), UNREADABLE, record.drop, True))
    if "duplicates" not in plan.skip:
        looked.copies(records)
    if plan.judge is not None:
        looked.captions(records, plan.judge)
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
        report.ran.append("profile")
        self.reader = None
        if TEXT not in plan.skip:
            try:
                self.reader = TextReader()
                report.ran.append("text in pictures")
            except MissingPackage as error:
                report.missing.append(f"text in pictures: {error}")

    def at(self, index: int, record: PictureRecord) -> PictureRecord:
        """The record with its faults as `drop`."""
        try:
            image = open_picture(record.path, self.plan.limits)
            size = os.path.getsize(record.path)
        except (PictureError, OSError) as error:
            return self._told(record, [Finding(UNREADABLE, str(error))])
        measures = measure(image, size)
        lines = self.reader.read(image) if self.reader else []
        if "duplicates" not in self.plan.skip:
            self.prints.add(index, record.path, image)
            self._embedded(index, image)
        self.measures[index] = [getattr(measures, name) for name in MEASURED]
        self.quality[index] = _quality(measures, size, record)
        return self._told(record, findings(measures, self.plan.thresholds, lines, record.captions))

    def _embedded(self, index: int, image: Image.Image) -> None:
        if self.plan.embed is not None:
            vector = self.plan.embed(image)
            if self.embeddings is None:
                self.embeddings = np.zeros((len(self.quality), len(vector)), np.float16)
            self.embeddings[index] = vector

    def _told(self, record: PictureRecord, found: list[Finding]) -> PictureRecord:
        reasons = []
        for finding in found:
            drops = finding.drops and finding.kind not in self.plan.keep
            self.report.found.append(Found(str(record.path), finding.kind, finding.reason, drops))
            if drops:
                reasons.append(f"{finding.kind}: {finding.reason}")
        return replace(record, drop="; ".join(reasons)) if reasons else record

    def captions(self, records: list[PictureRecord], judge: CaptionJudge) -> None:
        """Drop pictures whose caption fits hardly better than those of others."""
        found = fits(records, judge, self.plan.limits, Progress("captions beside pictures"))
        self.report.ran.append(f"captions beside pictures, {len(found):,} of them")
        for index, fit in found.items():
            if fit < LEAST:
                reason = f"it helps the model {fit:.2f} times as much as captions usually do, below {LEAST}"
                records[index] = self._told(records[index], [Finding(CAPTION, reason)])

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
            told = self._told(replace(record, drop=""), [Finding(DUPLICATE, reason)])
            records[copy.index] = replace(record, drop="; ".join(filter(None, (record.drop, told.drop))))


def _quality(measures: Measures, file_bytes: int, record: PictureRecord) -> tuple:
    """What is better of two copies: more pixels, a caption, the sharper, the less compressed."""
    pixels = measures.width * measures.height
    return pixels, bool(record.captions), round(measures.sharpness, 1), file_bytes


def vision_embedder(file: Path) -> Embed:
    """The mean feature of SigLIP 2's vision encoder in a file, of full size or small."""
    import torch

    from ...weights import load_vision_encoder
    from .picture_files import flattened

    encoder = load_vision_encoder(file).eval()

    @torch.no_grad()
    def embed(image: Image.Image) -> np.ndarray:
        pixels = torch.from_numpy(np.asarray(flattened(image), np.float32) / 255)[None]
        features = encoder.features(pixels)[0].float().mean((0, 1))
        return torch.nn.functional.normalize(features, dim=0).numpy()

    return embed
