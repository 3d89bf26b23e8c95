"""Random weights and inputs of any size, from a printed seed."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from zimage_core import S3DiT, S3DiTConfig

TINY = S3DiTConfig(dim=256, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=96)
WIDE = S3DiTConfig(n_layers=1, n_refiner_layers=1)  # every width of the 6 B model


def seeds(count: int) -> list[int]:
    """ZIMAGE_SEED starts the series; pytest prints the seed in the test's id."""
    start = int(os.environ.get("ZIMAGE_SEED", "1234"))
    return [start + i for i in range(count)]


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Normal weights of variance 1/fan-in, norms near one, small biases: activations keep their size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(0.1 * noise + (0.0 if name.endswith("bias") else 1.0))
            else:
                p.copy_(noise / (p[0].numel() ** 0.5 if "pad_token" not in name else 1.0))
    return model.eval().requires_grad_(False)


def random_s3dit(config: S3DiTConfig, seed: int) -> S3DiT:
    return randomise(S3DiT(config), seed)


def random_inputs(
    config: S3DiTConfig, seed: int, batch: int = 1, size: tuple[int, int] = (8, 12), length: int = 21
) -> tuple[Tensor, Tensor, Tensor]:
    """latent, sigma, caption features."""
    generator = torch.Generator().manual_seed(seed + 1)
    return (
        torch.randn(batch, config.in_channels, *size, generator=generator),
        torch.rand(batch, generator=generator),
        torch.randn(batch, length, config.cap_feat_dim, generator=generator),
    )


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 distance of a from b."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())
