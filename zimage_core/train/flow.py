"""Rectified flow: how noisy a picture is shown, and the error of the velocity that is predicted for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import SHIFT

FEWEST, MOST = 256, 4096  # image tokens between which the shift by resolution grows
LEAST_SHIFT, MOST_SHIFT = math.exp(0.5), math.exp(1.15)  # as in Flux and Lumina's schedulers


def _shifted(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def resolution_shift(tokens: int) -> float:
    """More noise for larger pictures, in which more of the latent shows through it (SD3, section 5.3.2)."""
    part = (min(max(tokens, FEWEST), MOST) - FEWEST) / (MOST - FEWEST)
    return LEAST_SHIFT ** (1 - part) * MOST_SHIFT**part


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator)


def _logit_normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.sigmoid(torch.randn(count, generator=generator))


@dataclass(frozen=True)
class Noise:
    """Which sigmas are drawn.

    kind: "uniform"; "logit-normal", most in the middle; "shifted", logit-normal and moved to more noise by
    `shift`, or by the resolution where it is None; "weighted", uniform, the middle counts more (SD3's
    "cosmap"). Raises ValueError for another one.
    """

    kind: str = "shifted"
    shift: float | None = SHIFT

    def __post_init__(self) -> None:
        if self.kind not in DRAWN:
            raise ValueError(f"noise is {self.kind!r}, expected one of {', '.join(DRAWN)}")

    def draw(self, count: int, tokens: int, generator: torch.Generator) -> Tensor:
        """Sigmas [count] in 0..1 for pictures of so many tokens."""
        t = DRAWN[self.kind](count, generator)
        if self.kind != "shifted":
            return t
        return _shifted(t, resolution_shift(tokens) if self.shift is None else self.shift)

    def weights(self, sigma: Tensor) -> Tensor:
        """How much the error at each sigma counts [B]; its mean over uniform sigmas is 1."""
        if self.kind != "weighted":
            return torch.ones_like(sigma)
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


DRAWN: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "logit-normal": _logit_normal,
    "shifted": _logit_normal,
    "weighted": _uniform,
}


def noised(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean latents [B,C,h,w] and sigmas [B] -> noisy ones, and the velocities to predict, noise - clean.

    The noise is drawn on the CPU, so that it is the same on every device.
    """
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    return torch.lerp(clean, noise, sigma.to(clean).view(-1, 1, 1, 1)), noise - clean


def velocity_error(predicted: Tensor, wanted: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error in float32. weights: [B], how much each sample counts."""
    error = (predicted.float() - wanted.float()).square()
    if weights is None:
        return error.mean()
    return (error * weights.to(error).view(-1, 1, 1, 1)).mean()
