"""At which size things are measured: as people use them on a card, or so small that a CPU is quick."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend

from zimage_core import Qwen3Config, S3DiTConfig


@dataclass(frozen=True)
class Scale:
    """What `bench gpu` runs."""

    device: str
    config: S3DiTConfig
    sizes: tuple[int, ...]  # pixels of a side
    large: int  # the size at which products, and forwards under a cap, are measured
    rounds: int
    writer: Qwen3Config
    kernels: tuple[SDPBackend, ...]  # of attention
    copied: int  # bytes of a copy
    caps: tuple[float, ...]  # GB that a card may have left
    dtype: torch.dtype = torch.bfloat16


CARD = Scale(
    device="cuda",
    config=S3DiTConfig(),
    sizes=(512, 1024, 2048),
    large=1024,
    rounds=20,
    writer=Qwen3Config(),
    kernels=(SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION),
    copied=2**32,
    caps=(6.0, 4.0),
)
TINY = Scale(
    device="cpu",
    config=S3DiTConfig(dim=384, n_layers=2, n_refiner_layers=1, n_heads=3, cap_feat_dim=96, t_hidden=384),
    sizes=(64, 128, 192),
    large=128,
    rounds=3,
    writer=Qwen3Config(vocab_size=2000, hidden_size=192, intermediate_size=320, num_hidden_layers=2),
    kernels=(SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
    copied=2**20,
    caps=(0.016, 0.013),
)
