"""Train a control network for the nano model, which itself stays as it is: it draws along given edges.

The model alone draws each thing in one way. So half of the pictures are mirrored: which half a picture is of,
only its edges say.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...conditions.control import Control, ControlNet
from ...config import ControlConfig, S3DiTConfig
from ...model.s3dit import Condition, S3DiT
from ...model.text_encoder import Qwen3TextEncoder
from ...prompt.template import tokenise
from ...weights.quantised import quantise_fp8
from ..plan import Plan
from ..trainer import fit, trained
from .captions import CaptionSet
from .lora import greyscale
from .muon import with_muon
from .shards import Shards
from .transformer import BUCKET, draw_sigmas, token_count, velocity_loss

PLAN = Plan(steps=700, lr=2e-3, warmup=30, cooldown=0.6, ema=0.97, optimizer="muon")
BATCH = 32
FILE_NAME = "control.safetensors"
THRESHOLD = 0.3  # of the gradient of brightness in [0, 1], about what Canny's 0.4 keeps
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
BLUR = (0.06, 0.24, 0.4, 0.24, 0.06)  # Gaussian, sigma 1


def small_config(base: S3DiTConfig) -> ControlConfig:
    """Two narrow blocks, in the manner of version 1.0: 4 MB in fp8."""
    sizes = dataclasses.replace(base, n_layers=2, n_refiner_layers=0, ffn_dim=base.dim * 4 // 3)
    return ControlConfig(sizes, base.in_channels, "tokens")


def mirrored(pixels: Tensor) -> Tensor:
    return pixels.flip(-1)


def edges(pixels: Tensor) -> Tensor:
    """Pictures [B,3,H,W] in [-1,1] -> thin white edges on black, as Canny draws them."""
    bright = (greyscale(pixels)[:, :1] + 1) / 2
    blur = torch.tensor(BLUR, device=pixels.device)
    for kernel in (blur.view(1, 1, 1, -1), blur.view(1, 1, -1, 1)):
        room = (kernel.shape[-1] // 2,) * 2 + (kernel.shape[-2] // 2,) * 2
        bright = F.conv2d(F.pad(bright, room, mode="replicate"), kernel)
    sobel = torch.tensor(SOBEL, device=pixels.device)
    padded = F.pad(bright, (1, 1, 1, 1), mode="replicate")
    dx, dy = F.conv2d(padded, torch.stack((sobel, sobel.T))[:, None]).split(1, dim=1)
    strength = torch.hypot(dx, dy)
    # an edge is where the gradient is largest along its own direction, of four
    direction = torch.round(torch.atan2(dy, dx) / (torch.pi / 4)).long() % 4
    around = F.pad(strength, (1, 1, 1, 1))
    height, width = strength.shape[-2:]

    def shifted(x: int, y: int) -> Tensor:
        return around[..., 1 + y : 1 + y + height, 1 + x : 1 + x + width]

    neighbours = torch.cat(
        [torch.maximum(shifted(x, y), shifted(-x, -y)) for x, y in ((1, 0), (1, 1), (0, 1), (-1, 1))], dim=1
    )
    thin = (strength > THRESHOLD) & (strength >= neighbours.gather(1, direction))
    return (2.0 * thin - 1.0).expand_as(pixels)


class Steered(nn.Module):
    """The frozen model under a control, as `velocity_loss` calls a model.

    x brings the control's latent as further channels.
    """

    def __init__(self, base: S3DiT, network: ControlNet) -> None:
        super().__init__()
        self.base, self.network = base.requires_grad_(False), network

    @property
    def x_pad_token(self) -> Tensor:
        return self.base.x_pad_token

    def forward(self, x: Tensor, timesteps: Tensor, *, condition: Condition) -> Tensor:
        noisy, latent = x.chunk(2, dim=1)
        return self.base(noisy, timesteps, condition=condition, hooks=[Control(self.network, latent)])


def initialise(network: ControlNet, base: S3DiT) -> None:
    """Blocks start as the model's own where sizes agree, the projections at zero: nothing is changed yet."""
    for layer, block in zip(network.config.hint_layers(base.config), network.control_layers, strict=True):
        theirs = base.layers[layer].state_dict()
        for name, weight in block.state_dict().items():
            if name in theirs and theirs[name].shape == weight.shape:
                weight.copy_(theirs[name])
        for projection in (getattr(block, "before_proj", None), block.after_proj):
            if projection is not None:
                nn.init.zeros_(projection.weight)
                nn.init.zeros_(projection.bias)


def control_weights(trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """The control's part of a `Steered` model's weights as its file has them: matrices in scaled fp8."""
    out = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for key, weight in trained.items():
        key = key.removeprefix("network.")
        if not key.startswith("control_"):
            continue
        weight = weight.detach().cpu()
        if weight.ndim == 2 and "embedder" not in key:
            out[key], out[key.removesuffix("weight") + "scale_weight"] = quantise_fp8(weight)
        else:
            out[key] = weight.to(torch.bfloat16).contiguous()
    return out


def train(
    base: S3DiT,
    latents: Tensor,
    control_latents: Tensor,
    captions: CaptionSet,
    text_encoder: Qwen3TextEncoder,
    tokenizer: Any,
    state: Path,
    plan: Plan = PLAN,
    batch: int = BATCH,
    device: str = "cpu",
    workers: int = 1,
    stop_at: int | None = None,
) -> dict[str, Tensor]:
    """Train on latents and those of their control pictures; returns the file's tensors.

    Both latents: [variants, concepts, colours, 16, h, w].
    """
    torch.manual_seed(plan.seed)
    network = ControlNet(small_config(base.config))
    with torch.no_grad():
        initialise(network, base)
    model = Steered(base, network).to(device)
    count = workers if device == "cpu" else 1
    shards = Shards(model, count)
    text_encoder = text_encoder.to(device)

    def backward(step: int, generator: torch.Generator) -> float:
        drawn = []
        while len(drawn) < batch:
            pair, colour = captions.draw(generator)
            if token_count(tokenizer, pair.caption) <= BUCKET:
                drawn.append((pair.caption, pair.concept, colour))
        prompts, concepts, colours = zip(*drawn, strict=True)
        tokens = tokenise(tokenizer, list(prompts))
        picked = torch.randint(len(latents), (batch,), generator=generator), list(concepts), list(colours)
        clean = latents[picked]
        noise = torch.randn(clean.shape, generator=generator)
        sigma = draw_sigmas(batch, generator)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1))
        steered = torch.cat((noisy, control_latents[picked]), dim=1)
        even = torch.ones(batch, 1, 1, 1)  # the errors of all cells count alike
        pieces = (steered, sigma, noise - clean, even, tokens.input_ids, tokens.mask)
        pieces = [t.to(device).chunk(count) for t in pieces]
        return shards.backward(
            [partial(velocity_loss, text_encoder, *piece) for piece in zip(*pieces, strict=True)]
        )

    return control_weights(fit(trained(model), backward, plan, state, None, stop_at, with_muon(plan)))
