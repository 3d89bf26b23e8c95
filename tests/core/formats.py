"""Files in ComfyUI's formats and in ggml's, written by comfy-kitchen and by the package gguf."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from comfy_kitchen.tensor import QuantizedTensor
from gguf import GGMLQuantizationType
from torch import Tensor

from zimage_core import S3DiTConfig

# widths that every format can store: groups of 256 columns, tiles of 128 rows
WIDE = S3DiTConfig(
    dim=256, n_layers=1, n_refiner_layers=1, n_heads=2, ffn_dim=512, cap_feat_dim=64, t_hidden=16, t_dim=16
)
KITCHEN: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {  # layout, how to quantise, names in files
    "float8_e4m3fn": ("TensorCoreFP8Layout", {"scale": "recalculate"}, {"scale": "weight_scale"}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}, {"scale": "weight_scale"}),
    "nvfp4": ("TensorCoreNVFP4Layout", {}, {"scale": "weight_scale_2", "block_scale": "weight_scale"}),
    "int8_tensorwise": ("TensorWiseINT8Layout", {}, {"scale": "weight_scale"}),
    "int8_tensorwise by row": ("TensorWiseINT8Layout", {"per_channel": True}, {"scale": "weight_scale"}),
    "int8_tensorwise, rotated": (
        "TensorWiseINT8Layout",
        {"per_channel": True, "convrot": True, "convrot_groupsize": 64},
        {"scale": "weight_scale"},
    ),
    "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", {}, {"scale": "weight_scale"}),
    "asym_w4a8_int8": (
        "AsymW4A8Int8Layout",
        {},
        {"scale": "weight_s_rel", "s_channel": "weight_s_channel", "codebook": "weight_codebook"},
    ),
    "asym_w4a8_int8 without a codebook": (
        "AsymW4A8Int8Layout",
        {"codebook": False, "group_size": 32, "convrot_groupsize": 64},
        {"scale": "weight_s_rel", "s_channel": "weight_s_channel"},
    ),
    "asym_w4a8_int8, asymmetric": (
        "AsymW4A8Int8Layout",
        {"codebook": False, "symmetric": False},
        {"scale": "weight_s_rel", "s_channel": "weight_s_channel", "correction": "weight_correction"},
    ),
}
BLOCKS = re.compile(r"attention\.|feed_forward\.|layers\.\d+\.(self_attn|mlp)\.|blk\.\d+\.")
SAID = ("convrot", "convrot_groupsize", "group_size")  # options that a marker repeats
QUANTISED = [q for q, (values, _) in gguf.GGML_QUANT_SIZES.items() if values > 1]
READ = [q for q in QUANTISED if q.name not in ("Q8_1", "Q8_K", "Q1_0")]  # those that gguf dequantises


def block_matrices(state: dict[str, Tensor]) -> list[str]:
    """Layers of attention and feed-forward."""
    layers = [k.removesuffix(".weight") for k, v in state.items() if k.endswith(".weight") and v.ndim == 2]
    return [layer for layer in layers if BLOCKS.search(layer)]


def by_kitchen(
    state: dict[str, Tensor], name: str, layers: list[str] | None = None
) -> tuple[dict[str, Tensor], dict[str, dict], dict[str, Tensor]]:
    """A file's tensors with the blocks, or these layers, in a format; what markers say; the truth."""
    layers = block_matrices(state) if layers is None else layers
    layout, options, names = KITCHEN[name]
    out, truth = {k: v.bfloat16() for k, v in state.items()}, {k: v.bfloat16() for k, v in state.items()}
    said = {key: value for key, value in options.items() if key in SAID}
    for layer in layers:
        quantised = QuantizedTensor.from_float(state[f"{layer}.weight"].float(), layout, **options)
        out[f"{layer}.weight"] = quantised._qdata
        out |= {f"{layer}.{ours}": getattr(quantised._params, theirs) for theirs, ours in names.items()}
        truth[f"{layer}.weight"] = quantised.dequantize()
    marks = {layer: {"format": name.split()[0].strip(","), **said} for layer in layers}
    return {k: v.contiguous() for k, v in out.items()}, marks, truth


def marker(spec: dict) -> Tensor:
    return torch.tensor(list(json.dumps(spec).encode()), dtype=torch.uint8)


def blocks(weight: Tensor, kind: GGMLQuantizationType, rng: np.random.Generator) -> np.ndarray:
    """A matrix in a type's blocks; random ones of small finite values where gguf cannot quantise to it."""
    try:
        return gguf.quants.quantize(weight.float().numpy(), kind)
    except NotImplementedError:
        pass
    values, size = gguf.GGML_QUANT_SIZES[kind]
    drawn = rng.integers(0, 256, (512, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        small = np.abs(gguf.quants.dequantize(drawn, kind)).max(axis=1) < 100  # no NaN either
    chosen = rng.choice(drawn[small], weight.numel() // values)
    return chosen.reshape(weight.shape[0], -1)


def write_gguf(
    path: Path,
    state: dict[str, Tensor],
    kind: GGMLQuantizationType,
    architecture: str | None,
    seed: int,
    flat: tuple[str, ...] = ("x_pad_token", "cap_pad_token"),
) -> dict[str, Tensor]:
    """A file with the blocks of a type, pads flat in bfloat16, the rest in float32; what it stands for."""
    writer, rng = gguf.GGUFWriter(path, architecture or "-"), np.random.default_rng(seed)
    if architecture is None:
        writer.kv_data[0].clear()
    truth, layers = {}, block_matrices(state)
    for key, value in state.items():
        if key.removesuffix(".weight") in layers:
            stored = blocks(value, kind, rng)
            truth[key] = torch.from_numpy(gguf.quants.dequantize(stored, kind))
            writer.add_tensor(key, stored, raw_dtype=kind)
        elif key.endswith(flat):
            pad = value.flatten().bfloat16()
            truth[key] = pad.reshape(1, -1)
            writer.add_tensor(key, pad.view(torch.uint8).numpy(), raw_dtype=GGMLQuantizationType.BF16)
        else:
            truth[key] = value.float()
            writer.add_tensor(key, value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return truth
