"""A latent decoded tile by tile, where the whole would not fit; near to the whole, not equal to it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

PER_PIXEL = 7  # of decoding: times the width at full size and the size of the type, in bytes
SMALLEST, STEP = 32, 8  # cells of a tile's side
OVERLAP = 4  # a tile shares this part of its side with the next


def bytes_for(autoencoder: nn.Module, pixels: int) -> int:
    """What it needs beside its weights, to encode or decode so many pixels at once."""
    return PER_PIXEL * pixels * autoencoder.config.ch * next(autoencoder.parameters()).element_size()


def tile_side(autoencoder: nn.Module, room: int) -> int:
    """Cells of a square tile that it can decode with so many bytes, at least the smallest."""
    side = math.isqrt(max(room, 0) // bytes_for(autoencoder, autoencoder.config.downscale**2))
    return max(side // STEP * STEP, SMALLEST)


def starts(length: int, side: int) -> list[int]:
    """Where tiles begin that cover a length, evenly, each sharing at least a part with the next."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side - side // OVERLAP)) + 1
    return [round(at * (length - side) / (count - 1)) for at in range(count)]


class Together(Protocol):
    """Processes that share work."""

    rank: int
    size: int

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, on each."""


def decode_in_tiles(
    decode: Callable[[Tensor], Tensor],
    latent: Tensor,
    side: int,
    downscale: int,
    together: Together | None = None,
) -> Tensor:
    """latent [B, C, h, w] -> pixels [B, 3, h, w] * downscale in float32, tiles fading into each other.

    decode: the same for a tile. The autoencoder's norms and attention see a tile at a time, so that colours
    may differ a little from those of the whole. together: processes with the same latent, each of which
    decodes some of the tiles.
    """
    height, width = latent.shape[-2:]
    shape = (latent.shape[0], 3, height * downscale, width * downscale)
    total = torch.zeros(shape, device=latent.device)
    weights = total.new_zeros(1, 1, *shape[2:])
    places = [(top, left) for top in starts(height, side) for left in starts(width, side)]
    for top, left in places[together.rank :: together.size] if together else places:
        part = decode(latent[..., top : top + side, left : left + side]).float()
        fade = _fade(part.shape[-2], part)[:, None] * _fade(part.shape[-1], part)
        place = (..., *(slice(at * downscale, at * downscale + size)
                        for at, size in ((top, part.shape[-2]), (left, part.shape[-1]))))  # fmt: skip
        total[place] += part * fade
        weights[place] += fade
    if together:
        total, weights = together.total(total), together.total(weights)
    return total / weights


def _fade(length: int, like: Tensor) -> Tensor:
    """[length], 1 in the middle, falling towards both ends, never 0."""
    ramp = max(length // OVERLAP, 1)
    ends = torch.minimum(torch.arange(length), torch.arange(length).flip(0)).to(like.device)
    return ((ends + 1) / ramp).clamp(max=1).to(like)
