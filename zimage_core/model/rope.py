"""Rotary positions on three axes: frame, row, column (paper section 3).

Tables have Flux's 2x2 layout, which the host's patches expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor


def rope_table(ids: Tensor, axes_dims: Sequence[int], theta: float) -> Tensor:
    """Rotation matrices of token positions.

    ids: [..., S, len(axes_dims)]. Returns float32 [..., S, 1, sum(axes_dims) / 2, 2, 2], 1 for all heads.
    Angles are computed in float64: bfloat16 or float32 positions would lose large images.
    """
    if ids.device.type == "mps":  # has no float64
        return rope_table(ids.cpu(), axes_dims, theta).to(ids.device)
    angles = []
    for axis, width in enumerate(axes_dims):
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device=ids.device) / width
        angles.append(ids[..., axis, None].double() * theta**-exponent)
    angle = torch.cat(angles, dim=-1).unsqueeze(-2)
    cos, sin = angle.cos().float(), angle.sin().float()
    return rearrange(torch.stack((cos, -sin, sin, cos), dim=-1), "... (i j) -> ... i j", i=2)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring pairs (x[2k], x[2k+1]) in float32.

    x: [B, S, heads, D]; table: [1 or B, S, 1, D/2, 2, 2].
    """
    if x.dtype in (torch.bfloat16, torch.float16) and x.device.type != "cpu" and not torch.is_grad_enabled():
        return rotate_in_type(x, table)
    pairs = rearrange(x.float(), "b s h (d pair) -> b s h d 1 pair", pair=2)
    turned = (table[..., 0] * pairs[..., 0]).addcmul_(table[..., 1], pairs[..., 1])
    del pairs  # as large as the result below and this together
    return rearrange(turned, "b s h d pair -> b s h (d pair)").type_as(x)


def rotate_in_type(x: Tensor, table: Tensor) -> Tensor:
    """The same, where the first of two products is kept in the type of x: a quarter of the traffic.

    For cards, whose operators convert as they read and write. Processors convert whole tensors for it.
    x: [..., heads, D]; table: [..., 1, D/2, 2, 2].
    """
    pairs = x.unflatten(-1, (-1, 1, 2))
    turned = torch.empty_like(x, memory_format=torch.contiguous_format).unflatten(-1, (-1, 2))
    torch.mul(table[..., 0], pairs[..., 0], out=turned)
    turned.addcmul_(table[..., 1], pairs[..., 1])
    return turned.flatten(-2)


def caption_ids(length: int, device: torch.device | None = None, after: int = 0) -> Tensor:
    """[length, 3]: caption token i sits at frame after + i + 1, row 0, column 0."""
    ids = torch.zeros(length, 3, dtype=torch.float32, device=device)
    ids[:, 0] = torch.arange(after + 1, after + length + 1, dtype=torch.float32, device=device)
    return ids


class Grid(NamedTuple):
    """How the rows and columns of an image are spread over its positions."""

    scale_y: float = 1.0
    scale_x: float = 1.0
    shift_y: float = 0.0
    shift_x: float = 0.0


PLAIN_GRID = Grid()


def image_ids(
    frame: int,
    rows: int,
    columns: int,
    padded: int,
    grid: Grid = PLAIN_GRID,
    device: torch.device | None = None,
) -> Tensor:
    """[padded, 3]: image tokens row by row at one frame; padding behind them sits at (0, 0, 0)."""
    ids = torch.zeros(padded, 3, dtype=torch.float32, device=device)
    y = torch.arange(rows, dtype=torch.float32, device=device) * grid.scale_y + grid.shift_y
    x = torch.arange(columns, dtype=torch.float32, device=device) * grid.scale_x + grid.shift_x
    ids[: rows * columns, 0] = frame
    ids[: rows * columns, 1] = repeat(y, "rows -> (rows columns)", columns=columns)
    ids[: rows * columns, 2] = repeat(x, "columns -> (rows columns)", rows=rows)
    return ids
