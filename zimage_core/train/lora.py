"""Train a LoRA of the nano model: low-rank changes of the blocks' linears, the weights themselves frozen.

The example that ships makes every picture greyscale.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..model.s3dit import S3DiT
from .nano.transformer import FromCaptions, fit_velocity
from .trainer import Plan

PLAN = Plan(steps=700, lr=5e-3, warmup=20, cooldown=0.6, ema=0.97)
BATCH = 32
RANK = 4
LAYERS = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
FILE = "loras/nano_greyscale_lora.safetensors"  # in the folder of the built-in model
PREFIX = "diffusion_model."  # of the names that the host's LoRA loaders take
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


class LoraLinear(nn.Module):
    """x -> base(x) + B A x. A starts random and B at zero: training starts from the base's own pictures."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.lora_A.weight, std=base.in_features**-0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


def add_lora(model: S3DiT, rank: int) -> None:
    """Freeze the model and put a trainable LoRA beside each linear of its joint layers."""
    model.requires_grad_(False)
    for block in model.layers:
        for path in LAYERS:
            parent, _, name = path.partition(".")
            module = block.get_submodule(parent)
            setattr(module, name, LoraLinear(getattr(module, name), rank))


def lora_weights(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA's part of a model's weights, bf16, in the names that the host's loaders take."""
    return {
        PREFIX + key: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for key, weight in trained.items()
        if ".lora_" in key
    }


def greyscale(pixels: Tensor) -> Tensor:
    """Pictures [B,3,H,W] -> the same without colour."""
    luma = torch.tensor(LUMA, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * luma).sum(dim=1, keepdim=True).expand_as(pixels)


def train(
    model: S3DiT,
    task: FromCaptions,
    state: Path,
    plan: Plan = PLAN,
    rank: int = RANK,
    device: str = "cpu",
    workers: int = 1,
    stop_at: int | None = None,
) -> dict[str, Tensor]:
    """Train on the changed pictures of the task; returns the file's tensors.

    The model is used up: its linears are wrapped.
    """
    torch.manual_seed(plan.seed)
    add_lora(model, rank)
    return lora_weights(fit_velocity(model.to(device), [task], state, plan, workers, stop_at))
