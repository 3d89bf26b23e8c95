"""Which part of the latents of a run a forward is for, where the host samples parts by themselves.

It tells so of areas of conditionings and of context windows; other extensions that cut latents do not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

Indices = Sequence[int] | None  # into one dimension of the latents of a run; None: all of it


class Part(NamedTuple):
    samples: Indices = None
    rows: Indices = None
    columns: Indices = None

    def of(self, whole: Tensor, cell: int = 1) -> Tensor:
        """whole: [b, ..., h, w], for all latents of the run, with `cell` pixels to a side of a latent's cell.

        One picture for all samples stays one.
        """
        if self.samples is not None and len(whole) > 1:
            whole = whole[[index % len(whole) for index in self.samples]]
        for dim, cells in ((-2, self.rows), (-1, self.columns)):
            if cells is not None:
                pixels = [index * cell + offset for index in cells for offset in range(cell)]
                whole = whole.index_select(dim, torch.tensor(pixels, device=whole.device))
        return whole

    def fits(self, x: Sequence[int], whole: Sequence[int]) -> bool:
        """Whether it is the part of latents of shape `whole` [B, C, H, W] that has the shape x."""
        sides = zip((self.rows, self.columns), whole[-2:], x[-2:], strict=True)
        return all(size == (full if cells is None else len(cells)) for cells, full, size in sides)


def parts_of(areas: Sequence[Sequence[int]], window: Any) -> tuple[Part, ...]:
    """One for each conditioning of a batch.

    areas: of each, height, width, top and left in what is sampled, or nothing for all of it.
    window: the host's context window that is sampled, with `index_list` and `dim` of [B, C, H, W]; or None.
    """
    inside = dict.fromkeys((0, 2, 3))
    if window is not None and window.dim in inside:
        anchor = getattr(window, "causal_anchor_index", None)  # a frame before the window, for its sake
        before = () if anchor is None or anchor < 0 else (anchor,)
        inside[window.dim] = (*before, *window.index_list)

    def some(cells: Indices, start: int, size: int) -> Sequence[int]:
        return range(start, start + size) if cells is None else cells[start : start + size]

    made = []
    for area in areas:
        samples, rows, columns = inside.values()
        if area:
            height, width, top, left = area
            rows, columns = some(rows, top, height), some(columns, left, width)
        made.append(Part(samples, rows, columns))
    return tuple(made)


def cut(whole: Tensor, parts: Sequence[Part]) -> Tensor:
    """whole [b, h, w], b = 1 or the samples of all conditionings -> each conditioning's part of it."""
    parts = [part._replace(samples=None) for part in parts]
    if len(set(parts)) == 1:
        return parts[0].of(whole)
    each = whole.chunk(len(parts)) if len(whole) > 1 else [whole] * len(parts)
    return torch.cat([part.of(own) for part, own in zip(parts, each, strict=True)])


@cache
def report_lost(part: tuple[int, int], whole: tuple[int, int]) -> None:
    """Once for each pair of sizes."""
    logging.warning(
        "Another extension has a part of %d x %d sampled out of a latent of %d x %d and does not say which: "
        "control pictures and regions' masks count in it as a whole, made as small as the part.",
        *(*part[::-1], *whole[::-1]),
    )
