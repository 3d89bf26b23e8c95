"""Sigma grids of rectified flow: 1 is pure noise, 0 the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import SHIFT, TURBO_STEPS


def flow_sigmas(steps: int, shift: float = SHIFT, denoise: float = 1.0) -> Tensor:
    """float32 [steps + 1], from the start down to 0: sigma' = shift * sigma / (1 + (shift - 1) * sigma).

    denoise below 1 starts later on a finer grid of int(steps / denoise) steps, as the host's samplers do; at
    0 nothing is left to do and the grid is empty. Raises ValueError for values outside their range.
    """
    if not 0 <= denoise <= 1:
        raise ValueError(f"denoise must be between 0 and 1, got {denoise}")
    if denoise == 0:
        return torch.empty(0)
    return _shifted_grid(1.0, int(steps / denoise), shift)[-(steps + 1) :]


def strength_sigmas(steps: int, shift: float = SHIFT, strength: float = 1.0) -> Tensor:
    """A grid of its own from the sigma that strength stands for down to 0: float32 [steps + 1].

    It is for changing a picture. No strength is rounded to a step: any number of steps starts at 0.6,
    shifted, for 0.6. Strength 1 is flow_sigmas. Raises ValueError for values outside their range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    return _shifted_grid(strength, steps, shift)


def _shifted_grid(start: float, steps: int, shift: float) -> Tensor:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if shift <= 0:
        raise ValueError(f"shift must be above 0, got {shift}")
    sigma = torch.linspace(start, start / steps, steps, dtype=torch.float64)
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    return torch.cat((sigma, sigma.new_zeros(1))).float()


def turbo_sigmas(steps: int = TURBO_STEPS) -> Tensor:
    """The official Turbo grid; 8 steps are 1, .9545, .9, .8333, .75, .6429, .5, .3, 0."""
    return flow_sigmas(steps, SHIFT)


def euler_step(x: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """x + (sigma_next - sigma) * velocity, in float32: small steps would be lost in bfloat16."""
    return x + (sigma_next - sigma) * velocity.float()
