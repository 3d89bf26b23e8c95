"""What is kept of each picture to find its copies: a digest, hashes and a thumbnail, about 6.5 KB in all."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from .alignment import SIDE, thumbnail
from .optional import MissingPackage, module
from .picture_files import flattened

COLOURS = 16  # cells of a side of the thumbnail in colour
CELLS = 32  # of a side, of which the cosine transform is taken
WAVES = 6  # of them per axis that are kept, without the mean
WIDTH = WAVES * WAVES - 1
PARTS = (0.85, 0.75)  # sides of the parts that are described as well, at 3 x 3 places each
BLOCK = 1 << 20


def _cosines() -> np.ndarray:
    """The first WAVES rows of the orthonormal DCT-II [WAVES, CELLS]."""
    k, n = np.arange(WAVES)[:, None], np.arange(CELLS)[None]
    rows = np.cos(np.pi * (n + 0.5) * k / CELLS) * np.sqrt(2 / CELLS)
    rows[0] /= np.sqrt(2)
    return rows.astype(np.float32)


def _boxes() -> Iterator[tuple[float, float, float, float]]:
    """Left, top, right, bottom, of 1: the whole, then its parts."""
    yield 0.0, 0.0, 1.0, 1.0
    for side in PARTS:
        for left in (0.0, (1 - side) / 2, 1 - side):
            for top in (0.0, (1 - side) / 2, 1 - side):
                yield left, top, left + side, top + side


COSINES, BOXES = _cosines(), tuple(_boxes())


@dataclass(frozen=True)
class Fingerprint:
    """Of one picture: a row of each field of Fingerprints; its thumbnail [rows, columns] without a margin."""

    digest: bytes
    shape: tuple[int, int]
    colours: np.ndarray
    thumbnail: np.ndarray
    waves: np.ndarray
    hash: np.ndarray | None


def perceptual_hashes() -> tuple[ModuleType | None, str | None]:
    """The package imagehash, or None and why it is not there."""
    try:
        return module("imagehash"), None
    except MissingPackage as error:
        return None, str(error)


def fingerprint(path: Path, image: Image.Image, imagehash: ModuleType | None) -> Fingerprint:
    """image: what open_picture gives of the path."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    image = flattened(image)
    small = thumbnail(image)
    grey = Image.fromarray(small)
    return Fingerprint(
        digest.digest(),
        image.size,
        np.asarray(image.resize((COLOURS, COLOURS), Image.Resampling.BOX)),
        small,
        _waves(grey),
        None if imagehash is None else np.packbits(imagehash.phash(grey).hash),
    )


class Fingerprints:
    """Those of `count` pictures; thumbnails lie in a temporary file, so that memory stays small.

    digests: bytes [N, 32]. hashes: imagehash's phash, bits [N, 8] uint8, or None without that package.
    waves: [N, parts, WIDTH] float16. thumbnails: [N, SIDE, SIDE] uint8, of which heights and widths [N, 2]
    count. colours: [N, COLOURS, COLOURS, 3] uint8. shapes: width and height in pixels [N, 2].
    """

    def __init__(self, count: int) -> None:
        self.digests = np.zeros((count, 32), np.uint8)
        self.waves = np.zeros((count, len(BOXES), WIDTH), np.float16)
        self.colours = np.zeros((count, COLOURS, COLOURS, 3), np.uint8)
        self.shapes = np.zeros((count, 2), np.int32)
        self._sizes = np.zeros((count, 2), np.uint8)
        self._file = tempfile.TemporaryFile()
        self._thumbnails = np.memmap(self._file, np.uint8, "w+", shape=(max(count, 1), SIDE, SIDE))
        imagehash, self.missing = perceptual_hashes()
        self.hashes = None if imagehash is None else np.zeros((count, 8), np.uint8)

    def add(self, index: int, found: Fingerprint) -> None:
        self.digests[index] = np.frombuffer(found.digest, np.uint8)
        self.shapes[index] = found.shape
        self.colours[index] = found.colours
        rows, columns = found.thumbnail.shape
        self._sizes[index] = rows, columns
        self._thumbnails[index, :rows, :columns] = found.thumbnail
        if self.hashes is not None:
            self.hashes[index] = found.hash
        self.waves[index] = found.waves

    def thumbnail(self, index: int) -> np.ndarray:
        rows, columns = self._sizes[index]
        return self._thumbnails[index, :rows, :columns]


def _waves(grey: Image.Image) -> np.ndarray:
    """Low frequencies of the whole and its parts [len(BOXES), WIDTH]."""
    columns, rows = grey.size
    cells = [
        np.asarray(
            grey.resize(
                (CELLS, CELLS),
                Image.Resampling.BILINEAR,
                box=(left * columns, top * rows, right * columns, bottom * rows),
            ),
            np.float32,
        )
        for left, top, right, bottom in BOXES
    ]
    return (COSINES @ np.stack(cells) @ COSINES.T).reshape(len(BOXES), -1)[:, 1:]
