"""What a picture is like: size, sharpness, colour cast, border, density, transparency; and what is wrong."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .picture_files import flattened
from .picture_text import TextLine, unmentioned

NORMAL = 256  # pixels of the longer side at which sharpness, cast and density are measured
EDGES = 0.03  # share of the pixels that count as the strongest edges
QUALITY = 75  # of the JPEG whose size is the density
CAST_SIDE = 128  # ... for the cast, of a square
CELLS, REACH = 32, 2  # of a channel; colours that many cells apart are alike
LUMA = np.array((0.299, 0.587, 0.114), np.float32)


@dataclass(frozen=True)
class Measures:
    """Of one picture. Levels are of 255.

    sharpness: Laplacian over gradient at the strongest edges, about 1 over their width in pixels.
    cast: how far the weakest colour's lightest level stays behind the strongest one's, in the border and in
    what differs from it: 0 where either reaches white or grey, 1 where a colour is absent.
    border: standard deviation of its levels, 0 for a plain one. contrast: of all levels, 1st to 99th percent.
    density: bytes per pixel of a JPEG of it. compression: bytes per pixel of the file.
    transparent: share of the pixels that are not opaque.
    """

    width: int
    height: int
    sharpness: float
    contrast: float
    cast: float
    border: float
    density: float
    compression: float
    transparent: float


@dataclass(frozen=True)
class Thresholds:
    """Fixed on emoji with planted faults; docs/training-data.md says how well they hold on others."""

    side: int = 256  # pixels of the shorter side
    sharpness: float = 0.38
    cast: float = 0.29
    contrast: float = 8.0
    transparent: float = 0.98


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a picture. `kind` is a word of KINDS; `drops` whether it is left out."""

    kind: str
    reason: str
    drops: bool = True


@dataclass(frozen=True)
class Rule:
    kind: str
    applies: Callable[[Measures, Thresholds], bool]
    reason: str
    drops: bool = True


RULES = (
    Rule(
        "small",
        lambda m, t: min(m.width, m.height) < t.side,
        "{m.width} x {m.height} pixels: the shorter side is below {t.side}",
    ),
    Rule(
        "empty",
        lambda m, t: m.contrast < t.contrast or m.transparent > t.transparent,
        "next to nothing is seen: levels span {m.contrast:.0f} of 255, {m.transparent:.0%} is transparent",
    ),
    Rule(
        "blurred",
        lambda m, t: m.contrast >= t.contrast and m.sharpness < t.sharpness,
        "sharpness {m.sharpness:.2f} is below {t.sharpness:.2f}: edges are {edge:.0f} pixels wide at 256",
    ),
    Rule(
        "tinted",
        lambda m, t: m.contrast >= t.contrast and m.cast > t.cast,
        "colour cast {m.cast:.2f} is above {t.cast:.2f}: nothing in it is white or grey",
    ),
    Rule(
        "transparent",
        lambda m, t: 0 < m.transparent <= t.transparent,
        "{m.transparent:.0%} of it is transparent: it is put on white",
        drops=False,
    ),
)
TEXT = "text"
KINDS = (*(rule.kind for rule in RULES), TEXT)


def measure(image: Image.Image, file_bytes: int) -> Measures:
    """image: RGB or RGBA, as open_picture gives it."""
    transparent = 0.0
    if image.mode == "RGBA":
        transparent = float((np.asarray(image.getchannel("A")) < 255).mean())
    whole = flattened(image)
    small = whole.copy()
    small.thumbnail((NORMAL, NORMAL), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32)
    grey = pixels @ LUMA
    low, high = np.percentile(grey, (1, 99))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=QUALITY)
    return Measures(
        width=image.width,
        height=image.height,
        sharpness=_sharpness(grey),
        contrast=float(high - low),
        cast=_cast(small),
        border=float(_border(grey).std()),
        density=out.tell() / (small.width * small.height),
        compression=file_bytes / (image.width * image.height),
        transparent=transparent,
    )


def findings(
    measures: Measures,
    thresholds: Thresholds,
    lines: Sequence[TextLine] = (),
    captions: Sequence[str] = (),
) -> list[Finding]:
    """What is wrong with a picture, in the order of KINDS. lines: text in it; a caption may quote it."""
    edge = 1 / max(measures.sharpness, 0.01)
    found = [
        Finding(rule.kind, rule.reason.format(m=measures, t=thresholds, edge=edge), rule.drops)
        for rule in RULES
        if rule.applies(measures, thresholds)
    ]
    if strange := unmentioned(lines, captions):
        words = " / ".join(line.text for line in strange)[:80]
        share = sum(line.share for line in strange)
        found.append(Finding(TEXT, f"text that no caption quotes, on {share:.1%} of it: {words}"))
    return found


def _sharpness(grey: np.ndarray) -> float:
    if min(grey.shape) < 8:
        return 0.0
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    gradient = (across**2 + down**2) / 4
    strongest = gradient >= np.quantile(gradient, 1 - EDGES)
    energy = float(gradient[strongest].mean())
    return float(np.sqrt((laplacian[strongest] ** 2).mean() / energy)) if energy > 1e-3 else 0.0


def _cast(small: Image.Image) -> float:
    """A plain background is a choice, so that what is before it counts as well."""
    pixels = np.asarray(small.resize((CAST_SIDE, CAST_SIDE), Image.Resampling.BOX)).astype(np.int32)
    border = _border(pixels)
    near = np.zeros((CELLS + 2 * REACH,) * 3, bool)  # of colours in cells: those like one of the border's
    for red, green, blue in np.unique(border * CELLS // 256, axis=0):
        near[tuple(slice(c, c + 2 * REACH + 1) for c in (red, green, blue))] = True
    pixels = pixels.reshape(-1, 3)
    inside = ~near[tuple((pixels * CELLS // 256 + REACH).T)]
    before = pixels[inside] if inside.sum() >= 0.01 * len(pixels) else pixels
    reach = 0.0
    for part, share in ((before, 0.99), (border, 0.98)):
        lightest = np.sort(part, axis=0)[int(share * (len(part) - 1))]
        reach = max(reach, float(lightest.min() / max(lightest.max(), 1)))
    return 1 - reach


def _border(pixels: np.ndarray) -> np.ndarray:
    """[H, W, ...] -> the outermost pixels [N, ...]."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
