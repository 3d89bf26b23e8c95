"""Rotary positions on three axes: frame, row, column (paper section 3; Flux's 2x2 layout, which the host's
patches expect).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rope_table(ids: Tensor, axes_dims: Sequence[int], theta: float) -> Tensor:
    """Rotation matrices of token positions.

    ids: [..., S, len(axes_dims)] positions. Returns float32 [..., S, 1, sum(axes_dims) / 2, 2, 2],
    broadcastable over heads.
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
    return torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs (x[2k], x[2k+1]) in float32. x: [B, S, heads, D], table: [1 or B, S, 1, D/2,
    2, 2].
    """
    pairs = x.float().unflatten(-1, (-1, 1, 2))
    turned = (table[..., 0] * pairs[..., 0]).addcmul_(table[..., 1], pairs[..., 1])
    del pairs  # as large as the result below and this together
    return turned.flatten(-2).type_as(x)


def caption_ids(length: int, device: torch.device | None = None, after: int = 0) -> Tensor:
    """[length, 3]: caption token i sits at frame after + i + 1, row 0, column 0."""
    ids = torch.zeros(length, 3, dtype=torch.float32, device=device)
    ids[:, 0] = torch.arange(after + 1, after + length + 1, dtype=torch.float32, device=device)
    return ids


def image_ids(
    frame: int,
    rows: int,
    columns: int,
    padded: int,
    options: dict | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """[padded, 3]: image tokens row by row at one frame; what follows them up to `padded` sits at (0, 0, 0).

    options: the host's ScaleROPE values scale_x, scale_y, shift_x, shift_y.
    """
    options = options or {}
    ids = torch.zeros(padded, 3, dtype=torch.float32, device=device)
    y = torch.arange(rows, dtype=torch.float32, device=device) * options.get("scale_y", 1.0) + options.get(
        "shift_y", 0.0
    )
    x = torch.arange(columns, dtype=torch.float32, device=device) * options.get("scale_x", 1.0) + options.get(
        "shift_x", 0.0
    )
    grid = ids[: rows * columns]
    grid[:, 0] = frame
    grid[:, 1] = y.repeat_interleave(columns)
    grid[:, 2] = x.repeat(rows)
    return ids
