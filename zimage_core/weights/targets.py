"""What weights can be made smaller to: quantisers of one matrix, and the layers that they are for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import ggml
from .layouts import rotated
from .quantised import largest, quantise_fp8

# Not embedders, modulation, norms, pad tokens, the last layer, or what reads reference pictures: in low
# precision they spoil pictures and save little (vllm-omni #2728: noise).
QUANTISED = re.compile(
    r"(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(qkv|out)|feed_forward\.w[123])\.weight"
)
LARGEST_GROUP = 256  # columns of ComfyUI's own rotated files


class Target(NamedTuple):
    """One choice of `--to`.

    columns: a row of the matrix must be a multiple of it. spec: as in `layouts`, for so many columns.
    stored: a matrix in float32 -> the tensors that take its place, by the ends of their names; on the meta
    device also, for their shapes.
    """

    suffix: str
    columns: int
    spec: Callable[[int], dict[str, Any]]
    stored: Callable[[Tensor, dict[str, Any]], dict[str, Tensor]]


def marker(spec: dict[str, Any]) -> Tensor:
    """ComfyUI's `comfy_quant` tensor."""
    return torch.tensor(list(json.dumps(spec).encode()), dtype=torch.uint8)


def _fp8(weight: Tensor, spec: dict[str, Any]) -> dict[str, Tensor]:
    stored, scale = quantise_fp8(weight)
    return {"weight": stored, "weight_scale": scale, "comfy_quant": marker(spec)}


def _int8_spec(columns: int) -> dict[str, Any]:
    """Rotated in the largest groups that fit.

    The host rounds each layer's input to int8 as well. The rotation spreads its peaks over the group, which
    takes a third off the error of the built-in model.
    """
    group = next((size for size in (LARGEST_GROUP, 64, 16) if columns % size == 0), None)
    rotation = {"convrot": True, "convrot_groupsize": group} if group else {}
    return {"format": "int8_tensorwise", **rotation}


def _int8(weight: Tensor, spec: dict[str, Any]) -> dict[str, Tensor]:
    matrix = rotated(weight, spec["convrot_groupsize"]) if spec.get("convrot") else weight
    scale = (largest(matrix, dim=1) / 127).clamp(min=1e-30)
    stored = (matrix / scale).round_().clamp_(-127, 127).to(torch.int8)
    return {"weight": stored, "weight_scale": scale, "comfy_quant": marker(spec)}


def _blocks(weight: Tensor, spec: dict[str, Any]) -> dict[str, Tensor]:
    if weight.is_meta:
        block = ggml.BY_NAME[spec["type"]]
        size = weight.shape[1] // block.values * block.bytes
        return {"weight": weight.new_empty(weight.shape[0], size, dtype=torch.uint8)}
    import gguf

    kind = gguf.GGMLQuantizationType[spec["type"]]
    return {"weight": torch.from_numpy(gguf.quants.quantize(weight.numpy(), kind))}


def _gguf(name: str) -> Target:
    spec = {"format": "gguf", "type": name}
    return Target(".gguf", ggml.BY_NAME[name].values, lambda columns: spec, _blocks)


TARGETS = {
    "fp8": Target(".safetensors", 1, lambda columns: {"format": "float8_e4m3fn"}, _fp8),
    "int8": Target(".safetensors", 1, _int8_spec, _int8),
    **{f"gguf-{name.lower()}": _gguf(name) for name in ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")},
}
