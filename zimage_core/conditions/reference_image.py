"""A reference picture as the reference pipeline prepares it: at most a megapixel, sides of whole patches."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import REFERENCE_AREA, SIZE_MULTIPLE


class ReferenceImage(NamedTuple):
    """Both [1, H, W, 3] in [0, 1]."""

    seen: Tensor  # what the vision encoder takes
    encoded: Tensor  # its middle, with sides that the autoencoder and the patches divide


def prepare_reference(image: Tensor, limit: int = REFERENCE_AREA, area: int | None = None) -> ReferenceImage:
    """A picture in the sizes that the autoencoder and the vision encoder take.

    image: [1, H, W, 3 or more] in [0, 1]. One of more than `limit` pixels gets `area` pixels, the limit by
    default, in its own proportions. Raises ValueError when a side is then shorter than a patch.
    """
    image = image[..., :3].float().cpu()
    height, width = image.shape[1:3]
    given = f"{width}x{height}"
    if height * width > limit:
        scale = ((area or limit) / (height * width)) ** 0.5
        height, width = int(height * scale), int(width * scale)
        if min(height, width) >= SIZE_MULTIPLE:
            levels = (image[0] * 255).round().clamp(0, 255).to(torch.uint8).numpy()
            small = Image.fromarray(levels).resize((width, height), Image.Resampling.LANCZOS)
            image = torch.from_numpy(np.asarray(small, np.float32) / 255)[None]
    rows, columns = (size // SIZE_MULTIPLE * SIZE_MULTIPLE for size in (height, width))
    if not rows or not columns:
        made = "" if given == f"{width}x{height}" else f", which is made {width}x{height} for the model"
        raise ValueError(
            f"a reference picture is {given} pixels{made}: each side must have {SIZE_MULTIPLE} or more then. "
            "Use a larger or less narrow picture."
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return ReferenceImage(image, image[:, top : top + rows, left : left + columns])


def as_image(image: Any) -> Tensor:
    """A PIL image, or a tensor [H, W, 3] in [0, 1] -> [1, H, W, 3]."""
    if isinstance(image, Tensor):
        return image[None]
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32) / 255)[None]
