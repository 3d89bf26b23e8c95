"""The example LoRA of the nano model, which makes every picture greyscale."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...model.s3dit import S3DiT
from .. import lora
from ..plan import Plan
from .transformer import FromCaptions, fit_velocity

PLAN = Plan(steps=700, lr=5e-3, warmup=20, cooldown=0.6, ema=0.97)
BATCH = 32
SETTINGS = lora.Settings(rank=4)
FILE = "loras/nano_greyscale_lora.safetensors"  # in the folder of the built-in model
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def greyscale(pixels: Tensor) -> Tensor:
    """Pictures [B,3,H,W] -> the same without colour."""
    luma = torch.tensor(LUMA, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * luma).sum(dim=1, keepdim=True).expand_as(pixels)


def train(
    model: S3DiT,
    task: FromCaptions,
    state: Path,
    plan: Plan = PLAN,
    settings: lora.Settings = SETTINGS,
    device: str = "cpu",
    workers: int = 1,
    stop_at: int | None = None,
) -> dict[str, Tensor]:
    """Train on the changed pictures of the task; returns the file's tensors.

    The model is used up: its linears are wrapped.
    """
    torch.manual_seed(plan.seed)
    changes = lora.inject(model.to(device), settings)
    model.load_state_dict(fit_velocity(model, [task], state, plan, workers, stop_at), strict=False)
    return lora.tensors(changes)
