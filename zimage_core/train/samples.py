"""Pictures of a model that is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import SHIFT, TURBO_STEPS
from ..model.hooks import BlockHook
from ..model.memo import RunMemo
from ..model.s3dit import Prompt, S3DiT
from ..sampling.guidance import Guidance
from ..sampling.schedule import euler_step, flow_sigmas
from .batch import captions_of


@dataclass(frozen=True)
class Sampling:
    """How pictures are made: 8 steps without guidance for Turbo, 28 with it for Base."""

    steps: int = TURBO_STEPS
    guidance: float = 0.0
    shift: float = SHIFT


@torch.no_grad()
def draw(
    model: S3DiT,
    features: Sequence[Tensor],
    size: tuple[int, int],
    sampling: Sampling,
    seeds: Sequence[int],
    empty: Tensor | None = None,
    hooks: Sequence[BlockHook] = (),
    computes: torch.dtype | None = None,
) -> Tensor:
    """Features [L,width] of each caption and its seed -> scaled latents [B,C,h,w], float32.

    size: of the latents, h and w. empty: features of no text, for guidance. computes: the type of the
    products, if it is not that of the weights.
    Raises ValueError where guidance has none.
    """
    guidance = Guidance(sampling.guidance)
    if guidance.scale > 0 and empty is None:
        raise ValueError("guidance needs the features of an empty caption")
    shape, device = (model.config.in_channels, *size), model.x_pad_token.device
    place = {"device": device, "dtype": computes or model.x_pad_token.dtype}
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    x, memo = torch.stack(noise).to(device), RunMemo()

    def condition(rows: Sequence[Tensor]) -> Prompt:
        captions = captions_of([row.to(**place) for row in rows])
        return Prompt(captions)

    positive = condition(features)
    negative = condition([empty] * len(features)) if guidance.scale > 0 else None
    sigmas = flow_sigmas(sampling.steps, sampling.shift).tolist()
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        timesteps = torch.full((len(x),), sigma, device=x.device)
        sides = [positive, negative] if guidance.active(sigma) else [positive]
        found = [
            model(x.to(**place), timesteps, condition=side, hooks=hooks, memo=memo).float() for side in sides
        ]
        x = euler_step(x, guidance.combine(*found) if len(found) == 2 else found[0], sigma, following)
    return x
