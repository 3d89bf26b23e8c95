"""Pictures with labels on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ....zimage_core.prompt.syntax import whole_letters

GAP = 12  # pixels between pictures and around them
TEXT = 0.055  # height of letters, in heights of a picture
SMALLEST_TEXT = 12  # pixels
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
)
LARGEST = 16384  # pixels of a side


def sheet(groups: Sequence[torch.Tensor], labels: Sequence[str], columns: int) -> torch.Tensor:
    """[1, height, width, 3] of groups [batch, height, width, 3 or 4], 0 to 1, each with its label above.

    Groups of several pictures get a row each; single ones share rows of `columns`, 0 for what comes near a
    square. Raises ValueError where the sheet would be larger than LARGEST.
    """
    height, width = (max(group.shape[side] for group in groups) for side in (1, 2))
    most = max(len(group) for group in groups)
    across = (
        1 if most > 1 else columns or (len(groups) if len(groups) <= 4 else math.ceil(len(groups) ** 0.5))
    )
    size = max(round(height * TEXT), SMALLEST_TEXT)
    cell = (most * (width + GAP), height + (2 * size if any(labels) else 0) + GAP)
    across = min(across, len(groups))
    whole = (across * cell[0] + GAP, math.ceil(len(groups) / across) * cell[1] + GAP)
    if max(whole) > LARGEST:
        raise ValueError(f"the sheet would be {whole[0]}x{whole[1]} pixels; at most {LARGEST} a side.")
    made = Image.new("RGB", whole, "white")
    draw = ImageDraw.Draw(made)
    for number, (group, label) in enumerate(zip(groups, labels, strict=True)):
        left, top = (
            n * side + GAP for n, side in zip((number % across, number // across), cell, strict=True)
        )
        if any(labels):
            draw.text((left, top), _fitted(label, cell[0] - GAP, size), "black", _font(label, size))
            top += 2 * size
        for place, picture in enumerate(group):
            pixels = np.clip(255.0 * picture[..., :3].cpu().numpy(), 0, 255).astype(np.uint8)
            made.paste(Image.fromarray(pixels), (left + place * (width + GAP), top))
    return torch.from_numpy(np.asarray(made).astype(np.float32) / 255.0)[None]


def _font(text: str, size: int) -> ImageFont.ImageFont:
    """One with Chinese letters for texts that have others than Latin ones, if this machine has one."""
    for name in () if text.isascii() else FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _fitted(text: str, width: int, size: int) -> str:
    """The first line, shortened at its end to the width."""
    first = (whole_letters(text).splitlines() or [""])[0]
    text, font = first[:width], _font(first, size)  # a letter takes a pixel at least

    def kept(letters: int) -> str:
        return text if letters == len(text) else text[:letters].rstrip() + "..."

    fitting, too_many = 0, len(text) + 1
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if font.getlength(kept(middle)) <= width:
            fitting = middle
        else:
            too_many = middle
    return kept(fitting) if fitting else ""
