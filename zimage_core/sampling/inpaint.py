"""Masks and pixels around an edit: soft edges, sizes that the model takes, and what must not change.

Pictures are [B, H, W, C] in 0 to 1, masks [B, H, W]: 1 is painted anew, 0 stays, grey is in between.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fitted_mask(mask: Tensor, size: tuple[int, int], count: int) -> Tensor:
    """[H', W'] or [M, H', W'] -> [count, *size]: other sizes are scaled, fewer masks repeat."""
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    if mask.shape[-2:] != size:
        mask = F.interpolate(mask, size=size, mode="bilinear", antialias=True)
    return mask[:, 0].clamp(0, 1).repeat(-(-count // len(mask)), 1, 1)[:count]


def grown(mask: Tensor, pixels: int) -> Tensor:
    """Every value spreads so many pixels to all sides; below 0 the mask shrinks instead."""
    if pixels < 0:
        return 1 - grown(1 - mask, -pixels)
    across, down = (2 * pixels + 1, 1), (1, 2 * pixels + 1)
    for kernel in (across, down) if pixels else ():
        mask = F.max_pool2d(mask[:, None], kernel, 1, (kernel[0] // 2, kernel[1] // 2))[:, 0]
    return mask


def feathered(mask: Tensor, pixels: int) -> Tensor:
    """A soft edge outside of the mask: from 1 at its border to exactly 0 at most so many pixels away."""
    radius = pixels // 2
    if radius < 1:
        return mask
    soft = F.pad(grown(mask, radius)[:, None], (radius,) * 4, mode="replicate")
    for kernel in ((2 * radius + 1, 1), (1, 2 * radius + 1)):
        soft = F.avg_pool2d(soft, kernel, 1)
    return torch.maximum(mask, soft[:, 0].clamp(0, 1))


def padded(pixels: Tensor, multiple: int) -> Tensor:
    """Right and bottom edges repeated up to multiples; the picture keeps its place."""
    height, width = pixels.shape[1:3]
    if height % multiple == 0 and width % multiple == 0:
        return pixels
    rows = torch.arange(height + -height % multiple, device=pixels.device).clamp(max=height - 1)
    columns = torch.arange(width + -width % multiple, device=pixels.device).clamp(max=width - 1)
    return pixels[:, rows][:, :, columns]


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """[B, H, W] in pixels -> [B, 1, H / factor, W / factor]: the largest value of each cell.

    So nothing that is painted is left out. H and W are multiples of factor.
    """
    return F.max_pool2d(mask[:, None], factor)


def composite(image: Tensor, edited: Tensor, mask: Tensor) -> Tensor:
    """The edit inside the mask, the image outside: where the mask is 0, the very same numbers."""
    return torch.lerp(image, edited.to(image), mask[..., None].to(image))
