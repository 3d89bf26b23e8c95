"""Quantised layers as the host at hand runs and saves them, and as our own layers run the others."""

from __future__ import annotations

import json
import logging
from typing import Any, NamedTuple

import comfy.model_management as management
import comfy.quant_ops
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ....zimage_core.weights import Checkpoint, ggml
from ....zimage_core.weights.layouts import FP8, parts_of
from ....zimage_core.weights.quantised import Formats, dequantise_all

# 0.3.72 to 0.3.76 take the formats apart from the tensors, and have one name for all types of fp8
APART = "layer_quant_config" in vars(comfy.supported_models_base.BASE)
ONE_NAME = "float8_e4m3fn"


class Placed(NamedTuple):
    """Formats of the layers that stay as they are stored, by what runs them; all others become bfloat16."""

    host: Formats
    packed: Formats


def placed(checkpoint: Checkpoint) -> Placed:
    """The host gets what it runs itself; of the rest, matrices stay packed."""
    out = Placed({}, {})
    for layer, spec in checkpoint.formats.items():
        name = ONE_NAME if APART and spec["format"] == "float8_e5m2" else spec["format"]
        if layer.endswith("embed_tokens"):  # the host's embeddings are not quantised
            continue
        parts = parts_of(checkpoint.tensors, layer)
        if name in comfy.quant_ops.QUANT_ALGOS and _loads(name, parts):
            out.host[layer] = {**spec, "format": name}
        elif _packs(parts["weight"], spec):
            out.packed[layer] = spec
    return out


def _packs(weight: Tensor, spec: dict) -> bool:
    """Whether our own layer makes the matrix where it runs."""
    if spec["format"] == "gguf" and not ggml.BY_NAME[spec["type"]].read:
        return False  # the package gguf computes on the CPU, too slowly for every step
    anywhere = not weight.is_floating_point() or management.get_torch_device().type in ("cpu", "cuda")
    return weight.ndim == 2 and anywhere


def host_layers(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Placed]:
    """The tensors as this host and our packed layers take them, and which layers are whose."""
    kept = placed(checkpoint)
    others = {
        layer: spec
        for layer, spec in checkpoint.formats.items()
        if layer not in kept.host and layer not in kept.packed
    }
    if kept.packed:
        text = "Z-Image: %d layers stay packed in %s, each becomes a matrix when it runs"
        logging.info(text, len(kept.packed), _names(kept.packed))
    if others:
        logging.info("Z-Image: %d layers in %s become bfloat16", len(others), _names(others))
    state = dequantise_all(checkpoint.tensors, others, torch.bfloat16)
    for layer, spec in kept.host.items():
        if spec["format"] in FP8:
            state[f"{layer}.weight_scale"] = state[f"{layer}.weight_scale"].float().reshape(())
        if state[f"{layer}.weight"].dtype == torch.float8_e5m2:  # no card multiplies two of them
            state.pop(f"{layer}.input_scale", None)
    return state, kept


def _names(formats: Formats) -> str:
    return " and ".join(sorted({spec.get("type", spec["format"]) for spec in formats.values()}))


def _loads(name: str, parts: dict[str, Tensor]) -> bool:
    """Whether the host's loader takes all that a layer has."""
    if name in FP8:
        return parts["weight_scale"].numel() == 1
    return "weight_correction" not in parts


def quantised_state(config: Any, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Placed]:
    """A state dict for a network under `config`, and whose its layers are; config is told of the host's."""
    state, kept = host_layers(checkpoint)
    if kept.host and APART:
        config.layer_quant_config = kept.host
    elif kept.host:
        state |= markers(kept.host)
        config.quant_config = comfy.utils.detect_layer_quantization(state, "")
    return state | markers(kept.packed), kept


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
