"""A transformer file -> the host's MODEL."""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management as management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch

from ....zimage_core.weights import Checkpoint, WeightsError, read_transformer
from ..running.s3dit import Model
from .files import NANO, nano_settings

DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}


class Config(comfy.supported_models.ZImage):
    """The host's Z-Image configuration for any size of it."""

    def get_model(self, state_dict: dict, prefix: str = "", device: Any = None) -> Model:
        return Model(self, device=device)


class NanoLatentFormat(comfy.latent_formats.Flux):
    """Flux's scaling with the small autoencoder's own preview colours, which were fitted when it was
    trained.
    """

    def __init__(self) -> None:
        super().__init__()
        settings = nano_settings()
        self.latent_rgb_factors = settings["latent_rgb_factors"]
        self.latent_rgb_factors_bias = settings["latent_rgb_bias"]
        self.taesd_decoder_name = None


def load_patcher(path: Path, weight_dtype: str = "auto", disable_dynamic: bool = False) -> Any:
    """A MODEL from a file or folder of any dialect, in whatever patcher class the host uses now.

    Raises WeightsError for files that are no Z-Image transformer, and for unknown weight types.
    """
    if weight_dtype not in DTYPES:
        raise WeightsError(f"weight_dtype is {weight_dtype!r}, expected one of {', '.join(DTYPES)}")
    checkpoint = read_transformer(path)
    logging.info("Z-Image transformer: %s", checkpoint.summary)
    config = Config(
        {
            "image_model": "lumina2",
            **dataclasses.asdict(checkpoint.config),
            "allow_fp16": checkpoint.fits_float16,  # newer hosts ask, for cards without bfloat16
        }
    )
    built_in = path.parent == NANO
    if built_in:
        config.latent_format = NanoLatentFormat()
    dtype = DTYPES[weight_dtype]
    # a chosen type replaces the file's fp8, which saves nothing worth having in the small built-in model
    quantised = bool(checkpoint.formats) and dtype is None and not built_in
    if quantised:
        state = quantised_state(config, checkpoint)
    else:  # fp8 without scales stays as it is: the host casts it at each use
        state = checkpoint.plain() if checkpoint.formats else dict(checkpoint.tensors)

    load_device, offload_device = management.get_torch_device(), management.unet_offload_device()
    _set_dtypes(config, state, dtype, quantised, load_device)
    model = config.get_model(state, "").to(offload_device)
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:  # looked up now: the host rebinds it when dynamic VRAM starts
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device)
    options = {}
    if "assign" in inspect.signature(model.load_model_weights).parameters:
        options["assign"] = patcher.is_dynamic()
    model.load_model_weights(state, "", **options)
    patcher.cached_patcher_init = (load_patcher, (path, weight_dtype))
    return patcher


def quantised_state(config: Config, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """fp8 layers as this host's per-layer quantisation takes them."""
    state = dict(checkpoint.tensors)
    if "layer_quant_config" in vars(comfy.supported_models.supported_models_base.BASE):  # 0.3.72 to 0.3.76
        config.layer_quant_config = checkpoint.formats
    else:
        for layer, spec in checkpoint.formats.items():
            state[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(spec).encode()), dtype=torch.uint8)
        config.quant_config = comfy.utils.detect_layer_quantization(state, "")
    return state


def _set_dtypes(
    config: Config,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype | None,
    quantised: bool,
    load_device: torch.device,
) -> None:
    """The types that the host's own loader would choose: of the stored weights, and of the computation."""
    supported = list(config.supported_inference_dtypes)
    if dtype is None:
        dtype = management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state),
            supported_dtypes=supported,
            weight_dtype=None if quantised else comfy.utils.weight_dtype(state),
        )
    manual_cast = management.unet_manual_cast(None if quantised else dtype, load_device, supported)
    options = (
        {"device": load_device}
        if "device" in inspect.signature(config.set_inference_dtype).parameters
        else {}
    )
    config.set_inference_dtype(dtype, manual_cast, **options)
