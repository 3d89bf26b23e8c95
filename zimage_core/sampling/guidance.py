"""Classifier-free guidance as the reference pipeline does it for Z-Image Base."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """scale: 0 is off; the host's cfg is scale + 1. truncation: off once 1 - sigma exceeds it.

    normalisation: the guided velocity is scaled down to at most this many times the norm of the positive
    one; 0 is off.
    """

    scale: float = 0.0
    truncation: float = 1.0
    normalisation: float = 0.0

    def active(self, sigma: float) -> bool:
        return self.scale > 0 and 1.0 - sigma <= self.truncation

    def combine(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Velocities [B, C, H, W] -> the guided one, float32; the norm is over each sample's whole tensor."""
        positive, negative = positive.float(), negative.float()
        guided = positive + self.scale * (positive - negative)
        if self.normalisation > 0:
            dims = tuple(range(1, guided.ndim))
            allowed = torch.linalg.vector_norm(positive, dim=dims, keepdim=True) * self.normalisation
            guided = guided * (allowed / torch.linalg.vector_norm(guided, dim=dims, keepdim=True)).clamp(
                max=1.0
            )
        return guided
