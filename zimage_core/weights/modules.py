"""A file of any dialect -> one of our modules, ready to run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..conditions.control import ControlNet
from ..model.autoencoder import AutoencoderKL
from ..model.s3dit import S3DiT
from ..model.text_encoder import Qwen3TextEncoder
from ..model.vision import VisionEncoder
from .errors import WeightsError
from .readers import (
    Source,
    read_autoencoder,
    read_control,
    read_text_encoder,
    read_transformer,
    read_vision_encoder,
)


def _build(model: nn.Module, state: dict[str, Tensor], device: Any) -> nn.Module:
    wanted = model.state_dict().keys()
    state = {k: v.to(device) if device is not None else v for k, v in state.items() if k in wanted}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def load_transformer(source: Source, device: Any = None, dtype: torch.dtype | None = None) -> S3DiT:
    """An S3DiT from a path or a dict in any dialect. dtype None keeps the file's; fp8 is dequantised."""
    checkpoint = read_transformer(source)
    dtype = dtype or checkpoint.dtype
    return _build(S3DiT(checkpoint.config, device="meta", dtype=dtype), checkpoint.plain(dtype), device)


def load_control(source: Source, device: Any = None, dtype: torch.dtype | None = None) -> ControlNet:
    """A ControlNet from a path or a dict. dtype None keeps the file's; fp8 is dequantised."""
    checkpoint = read_control(source)
    dtype = dtype or checkpoint.dtype
    return _build(ControlNet(checkpoint.config, device="meta", dtype=dtype), checkpoint.plain(dtype), device)


def load_text_encoder(
    source: Source, device: Any = None, dtype: torch.dtype | None = None, language_model: bool = False
) -> Qwen3TextEncoder:
    """A Qwen3TextEncoder; without language_model its last layer and final norm are left in the file.

    Raises WeightsError when the file is none, or was cut to what features need and shall write text.
    """
    checkpoint = read_text_encoder(source)
    if language_model and "model.norm.weight" not in checkpoint.tensors:
        raise WeightsError(
            f"{checkpoint.name} has no model.norm.weight: it was cut to what prompts need and cannot write "
            "text. Use the whole Qwen3-4B (qwen_3_4b.safetensors)."
        )
    dtype = dtype or checkpoint.dtype
    model = Qwen3TextEncoder(checkpoint.config, device="meta", dtype=dtype, language_model=language_model)
    return _build(model, checkpoint.plain(dtype), device)


def load_autoencoder(source: Source, device: Any = None, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The Flux-style autoencoder."""
    checkpoint = read_autoencoder(source)
    dtype = dtype or checkpoint.dtype
    return _build(
        AutoencoderKL(checkpoint.config, device="meta", dtype=dtype), checkpoint.plain(dtype), device
    )


def load_vision_encoder(
    source: Source, device: Any = None, dtype: torch.dtype | None = None
) -> VisionEncoder:
    """SigLIP 2 from its own file, with or without its text half, or a folder of a diffusers model."""
    checkpoint = read_vision_encoder(source)
    dtype = dtype or checkpoint.dtype
    return _build(
        VisionEncoder(checkpoint.config, device="meta", dtype=dtype), checkpoint.plain(dtype), device
    )
