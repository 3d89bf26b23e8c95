"""Text in a picture, read by RapidOCR: English and Chinese, with the models that its package brings."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from .optional import module
from .picture_files import flattened

SURE = 0.8  # of a reading; below it is noise more often than text
LETTERS = 3  # a text that has fewer is often a shape
SIDES = (512, 1024)  # pixels of the longer side, least and most, in which text is looked for


@dataclass(frozen=True)
class TextLine:
    """A line as it was read. share: of the picture's area."""

    text: str
    score: float
    share: float


class TextReader:
    """Raises MissingPackage where RapidOCR or onnxruntime is not installed. threads: None: all CPUs."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads or -1
        module("onnxruntime")
        self._rapidocr = module("rapidocr")

    @cached_property
    def _engine(self) -> Any:
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        settings = {
            "Det.limit_side_len": SIDES[1],
            "Det.limit_type": "max",
            "EngineConfig.onnxruntime.intra_op_num_threads": self._threads,
            "Global.log_level": "error",
        }
        return self._rapidocr.RapidOCR(params=settings)

    def read(self, image: Image.Image) -> list[TextLine]:
        """The lines of which the reader is sure, from the top."""
        image = flattened(image)
        scale = min(max(max(image.size), SIDES[0]), SIDES[1]) / max(image.size)
        if scale != 1:
            size = tuple(max(16, round(side * scale)) for side in image.size)
            image = image.resize(size, Image.Resampling.BICUBIC)
        found = self._engine(np.asarray(image)[:, :, ::-1], use_cls=False)  # blue first
        if found.txts is None:
            return []
        area = image.width * image.height
        lines = []
        for text, score, box in zip(found.txts, found.scores, found.boxes, strict=True):
            if score >= SURE and sum(map(str.isalnum, text)) >= LETTERS:
                width, height = np.ptp(np.asarray(box), axis=0)
                lines.append(TextLine(text.strip(), float(score), float(width * height) / area))
        return lines


def unmentioned(lines: Iterable[TextLine], captions: Iterable[str]) -> list[TextLine]:
    """Lines that no caption quotes: a watermark, or text that a caption should name."""
    said = _letters(" ".join(captions))
    return [line for line in lines if _letters(line.text) not in said]


def _letters(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())
