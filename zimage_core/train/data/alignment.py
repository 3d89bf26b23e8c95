"""Is one picture a part of another? Thumbnails are laid over each other at every size and place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

SIDE = 64  # cells of a thumbnail's longer side
COARSE = 32  # ... where all places are tried
SIZES = np.arange(1.0, 0.499, -0.04)  # a part's sides, of the whole's; the least that a part may have is half
REFINEMENTS = (0.02, 0.01, 0.005)  # of the larger picture's sides
TOO_FAR = 0.6  # correlation at the best coarse place below which nothing is refined

Box = tuple[float, float, float, float]  # left, top, width, height, of 1
Shape = tuple[int, int]  # width and height of a picture in pixels


@dataclass(frozen=True)
class Match:
    """How alike the part is to that box of the whole: correlation of details, 1 for equal ones."""

    score: float
    box: Box


def thumbnail(image: Image.Image) -> np.ndarray:
    """Grey levels [h, w] uint8, the longer side SIDE; the mean of the pixels under each cell."""
    scale = SIDE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return np.asarray(image.convert("L").resize(size, Image.Resampling.BOX))


def part_of(part: np.ndarray, whole: np.ndarray, shape: Shape, whole_shape: Shape) -> Match:
    """The best place of a thumbnail in another's. shape, whole_shape: of the pictures.

    The part has the whole's scale or a uniformly other one, and is at least half of it in both sides.
    """
    sides = np.array(shape) / np.array(whole_shape)
    sides = sides / sides.max()  # as large as it can be
    whole_image, part_image = Image.fromarray(whole), Image.fromarray(part)
    best = _coarse(part_image, whole_image, sides)
    if best.score < TOO_FAR:
        return best
    target = _details(part_image)
    best = _scored(target, whole_image, best.box)
    for step in REFINEMENTS:
        while True:
            tried = (_scored(target, whole_image, box) for box in _around(best.box, step, sides))
            found = max(tried, key=lambda match: match.score)
            if found.score <= best.score:
                break
            best = found
    return best


def _around(box: Box, step: float, sides: np.ndarray) -> Iterator[Box]:
    left, top, width, height = box
    across, down = sides.tolist()
    for dx, dy, ds in ((-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)):
        w, h = min(width + ds * step * across, 1.0), min(height + ds * step * down, 1.0)
        x, y = left + dx * step - (w - width) / 2, top + dy * step - (h - height) / 2
        yield min(max(x, 0.0), 1 - w), min(max(y, 0.0), 1 - h), w, h


def _scored(target: np.ndarray, whole: Image.Image, box: Box) -> Match:
    """target: details [h, w] of the part at its own size."""
    left, top, width, height = box
    columns, rows = whole.size
    area = (left * columns, top * rows, (left + width) * columns, (top + height) * rows)
    size = (target.shape[1], target.shape[0])
    return Match(_correlation(target, _details(whole.resize(size, Image.Resampling.BILINEAR, box=area))), box)


def _details(image: Image.Image) -> np.ndarray:
    """Without what changes slowly: plain backgrounds would make all pictures alike."""
    smooth = image.filter(ImageFilter.BoxBlur(max(image.size) // 12))
    return np.asarray(image, np.float32) - np.asarray(smooth, np.float32)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size > 1.0 else 0.0


def _coarse(part: Image.Image, whole: Image.Image, sides: np.ndarray) -> Match:
    """The best cell and size by correlation over all places at once (Lewis, 1995)."""
    small = whole.resize(tuple(max(4, s * COARSE // SIDE) for s in whole.size), Image.Resampling.BOX)
    field = _details(small)
    rows, columns = field.shape
    sizes = [size for size in SIZES if (sides * size).min() >= SIZES[-1]] or [1.0]
    templates = np.zeros((len(sizes), 2 * COARSE, 2 * COARSE), np.float32)
    shapes = []
    for number, size in enumerate(sizes):
        w, h = (min(most, max(4, round(s * size * most))) for s, most in zip(sides, small.size, strict=True))
        template = _details(part.resize((w, h), Image.Resampling.BOX))
        template -= template.mean()
        templates[number, :h, :w] = template[::-1, ::-1] / max(float(np.sqrt((template**2).sum())), 1.0)
        shapes.append((h, w))
    shape = templates.shape[1:]
    products = np.fft.irfft2(np.fft.rfft2(field, shape) * np.fft.rfft2(templates, shape), shape)
    sums, squares = _running(field), _running(field * field)
    best = Match(-1.0, (0.0, 0.0, 1.0, 1.0))
    for size, product, (h, w) in zip(sizes, products, shapes, strict=True):
        spread = np.sqrt(np.maximum(_windows(squares, h, w) - _windows(sums, h, w) ** 2 / (h * w), 1.0))
        scores = product[h - 1 : rows, w - 1 : columns] / spread
        place = int(scores.argmax())
        if scores.flat[place] > best.score:
            y, x = divmod(place, scores.shape[1])
            width, height = sides * size
            box = (min(x / columns, 1 - width), min(y / rows, 1 - height), width, height)
            best = Match(float(scores.flat[place]), tuple(map(float, box)))
    return best


def _running(field: np.ndarray) -> np.ndarray:
    return np.pad(field.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)


def _windows(running: np.ndarray, height: int, width: int) -> np.ndarray:
    """The sum over each window of that size."""
    lower, upper = running[:-height], running[height:]
    return upper[:, width:] - lower[:, width:] - upper[:, :-width] + lower[:, :-width]
