"""More variety between seeds: captions that are blurred a little, each sample's in a way of its own."""

from __future__ import annotations

import torch
from torch import Tensor

UNTIL = 0.2  # of the steps, counted before the shift: the first two of eight
TO_DEVIATION = 1.4826  # a normal distribution's standard deviation, over its median absolute one


def varied(caption: Tensor, mask: Tensor | None, strength: float, seeds: list[int]) -> Tensor:
    """caption [b, L, width] -> [len(seeds), L, width], repeated and with noise, one seed a sample.

    The noise of a channel is `strength` times the channel's spread over the prompt's tokens. Spread is the
    median deviation: single tokens of a language model carry values many times as large as the rest. mask:
    bool [b, L] of the tokens that count, None when all do.
    """
    rows = []
    for index, seed in enumerate(seeds):
        features = caption[index % len(caption)]
        real = features if mask is None else features[mask[index % len(mask)].bool()]
        spread = (real - real.median(dim=0).values).abs().median(dim=0).values * TO_DEVIATION
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))
        rows.append(features + strength * spread * noise.to(features))
    return torch.stack(rows)
