"""Quantised layers as the host at hand runs and saves them."""

from __future__ import annotations

import json
import logging
from typing import Any

import comfy.quant_ops
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ....zimage_core.weights import Checkpoint
from ....zimage_core.weights.layouts import FP8, parts_of
from ....zimage_core.weights.quantised import Formats, dequantise_all

# 0.3.72 to 0.3.76 take the formats apart from the tensors, and have one name for all types of fp8
APART = "layer_quant_config" in vars(comfy.supported_models_base.BASE)
ONE_NAME = "float8_e4m3fn"


def kept_formats(checkpoint: Checkpoint) -> Formats:
    """The layers that this host runs as they are stored. Others become bfloat16."""
    formats: Formats = {}
    for layer, spec in checkpoint.formats.items():
        name = ONE_NAME if APART and spec["format"] == "float8_e5m2" else spec["format"]
        linear = not layer.endswith("embed_tokens")  # the host's embeddings are not quantised
        known = linear and name in comfy.quant_ops.QUANT_ALGOS
        if known and _loads(name, parts_of(checkpoint.tensors, layer)):
            formats[layer] = {**spec, "format": name}
    return formats


def host_layers(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Formats]:
    """The tensors as this host takes them, and the layers that stay as they are stored."""
    formats = kept_formats(checkpoint)
    others = {layer: spec for layer, spec in checkpoint.formats.items() if layer not in formats}
    if others:
        stored = sorted({spec.get("type", spec["format"]) for spec in others.values()})
        text = "Z-Image: %d layers in %s, which this ComfyUI cannot run, become bfloat16"
        logging.info(text, len(others), " and ".join(stored))
    state = dequantise_all(checkpoint.tensors, others, torch.bfloat16)
    for layer, spec in formats.items():
        if spec["format"] in FP8:
            state[f"{layer}.weight_scale"] = state[f"{layer}.weight_scale"].float().reshape(())
        if state[f"{layer}.weight"].dtype == torch.float8_e5m2:  # no card multiplies two of them
            state.pop(f"{layer}.input_scale", None)
    return state, formats


def _loads(name: str, parts: dict[str, Tensor]) -> bool:
    """Whether the host's loader takes all that a layer has."""
    if name in FP8:
        return parts["weight_scale"].numel() == 1
    return "weight_correction" not in parts


def quantised_state(config: Any, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], bool]:
    """A state dict for a network under `config`, and whether any of it is quantised; config is told so."""
    state, formats = host_layers(checkpoint)
    if formats and APART:
        config.layer_quant_config = formats
    elif formats:
        state |= markers(formats)
        config.quant_config = comfy.utils.detect_layer_quantization(state, "")
    return state, bool(formats)


def markers(formats: Formats) -> dict[str, Tensor]:
    """ComfyUI's `comfy_quant` tensors."""
    return {
        f"{layer}.comfy_quant": torch.tensor(list(json.dumps(spec).encode()), dtype=torch.uint8)
        for layer, spec in formats.items()
    }


def saveable(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict of a network as a file can hold it, where the host hands over its own quantised tensors.

    It becomes the older scaled fp8, which this host and later ones read.
    """
    said = state.pop("_quantization_metadata", None)
    if said is None:
        return state
    full_precision = all(spec.get("full_precision_matrix_mult") for spec in said["layers"].values())
    out = {"scaled_fp8": torch.zeros(2 if full_precision else 0, dtype=torch.float8_e4m3fn)}
    for key, value in state.items():
        if isinstance(value, comfy.quant_ops.QuantizedTensor):
            layer = key.removesuffix(".weight")
            out[key], params = value._qdata, value._layout_params
            out[f"{layer}.scale_weight"] = params["scale"].float().reshape(())
        elif key.endswith(".input_scale"):
            out[f"{key.removesuffix('.input_scale')}.scale_input"] = value
        else:
            out[key] = value
    return out
