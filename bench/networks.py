"""The networks that are compared, on the same tensors, and how each is called."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.host import inside
from tests.host.native_network import native_network
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

CAPTION = 96  # tokens
Run = Callable[[Tensor], Tensor]  # sigma [1] -> the velocity, or for diffusers its negative


def normal_weights(config: S3DiTConfig, device: str, dtype: torch.dtype) -> S3DiT:
    """Values of a trained model's size: matrix products of zeros would be faster than real ones."""
    model = S3DiT(config, device="meta", dtype=dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(1)
    for p in model.parameters():
        if p.ndim == 1:
            p.data.fill_(1.0)
        else:
            p.data.normal_(std=p.shape[-1] ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def native(model: S3DiT, device: str) -> nn.Module:
    """The host's network on the same tensors, with its own operations and attention, in this process."""
    inside.enter(Path(os.environ["COMFYUI_PATH"]), cpu=device != "cuda")
    peer = native_network(model.config, dtype=model.dtype, device="meta")
    peer.load_state_dict(model.state_dict(), strict=False, assign=True)
    if hasattr(peer, "norm_final"):  # a leftover that its forward does not use
        del peer.norm_final
    return peer.eval()


def inputs(config: S3DiTConfig, pixels: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A noisy latent [1, 16, H, W] and caption features [1, CAPTION, width]."""
    place, side = {"device": device, "dtype": dtype}, pixels // 8
    latent = torch.randn(1, config.in_channels, side, side, **place)
    return latent, torch.randn(1, CAPTION, config.cap_feat_dim, **place)


def our_run(network: S3DiT, x: Tensor, caption: Tensor, memo: RunMemo | None = None) -> Run:
    """memo: keeps what the steps of a run repeat."""
    prompt = Prompt(Captions.whole(caption))
    return lambda sigma: network(x, sigma, condition=prompt, memo=memo)


def native_run(network: nn.Module, x: Tensor, caption: Tensor) -> Run:
    return lambda sigma: network(x, sigma, caption, caption.shape[1])


def diffusers_run(network: nn.Module, x: Tensor, caption: Tensor) -> Run:
    latents, captions = [x[0].unsqueeze(1)], [caption[0]]
    return lambda sigma: network(latents, 1 - sigma, captions, return_dict=False)[0][0]
