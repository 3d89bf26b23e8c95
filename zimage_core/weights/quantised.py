"""fp8 layouts in files -> one form: `<layer>.weight` in fp8 with `<layer>.weight_scale`, and a format per
layer.

Two layouts are read: ComfyUI's `comfy_quant` markers (or the same in the file's
metadata), and the
older `scaled_fp8` marker with `scale_weight` and `scale_input`. W = weight * weight_scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import WeightsError

FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
OLD_NAMES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
COMPANIONS = ("weight_scale", "input_scale")

Formats = dict[str, dict]  # layer path -> {"format": "float8_e4m3fn", ...}


def normalise(
    name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], prefix: str
) -> tuple[dict, Formats]:
    """tensors: without `prefix`. Returns tensors in the one form, and the quantised layers.

    Raises WeightsError for a format that is not read here.
    """
    if "scaled_fp8" in tensors and "_quantization_metadata" not in metadata:
        return _from_scaled_fp8(tensors)
    out, formats = dict(tensors), {}
    if "_quantization_metadata" in metadata:
        for layer, spec in json.loads(metadata["_quantization_metadata"])["layers"].items():
            if layer.startswith(prefix):
                formats[layer[len(prefix) :]] = spec
    for key in [k for k in out if k.endswith(".comfy_quant")]:
        formats[key[: -len(".comfy_quant")]] = json.loads(bytes(out.pop(key).tolist()))
    for layer, spec in formats.items():
        if spec.get("format") not in FP8:
            raise WeightsError(
                f"{name}: layer {layer} is stored as {spec.get('format')!r}; "
                f"this loader reads {' and '.join(FP8)}. "
                "Use the bf16 or fp8 file of the same model."
            )
    return out, formats


def _from_scaled_fp8(tensors: Mapping[str, Tensor]) -> tuple[dict, Formats]:
    out, formats = {}, {}
    full_precision = tensors["scaled_fp8"].nelement() == 2
    for key, value in tensors.items():
        layer, _, suffix = key.rpartition(".")
        if key == "scaled_fp8" or (suffix == "scale_input" and float(value) == 1.0):
            continue
        out[f"{layer}.{OLD_NAMES.get(suffix, suffix)}" if layer else key] = value
        if suffix == "scale_weight" and tensors[f"{layer}.weight"].dtype in FP8.values():
            formats[layer] = {"format": str(tensors[f"{layer}.weight"].dtype).removeprefix("torch.")}
            if full_precision:
                formats[layer]["full_precision_matrix_mult"] = True
    return out, formats


def fuse_quantised_qkv(tensors: dict[str, Tensor], formats: Formats, parts: tuple[str, ...]) -> None:
    """Prepare split q, k, v for fusing, in place: equal scales become one of the fused layer, others are
    dequantised.
    """
    for first in [layer for layer in formats if layer.endswith(f".attention.{parts[0]}")]:
        base = first[: -len(parts[0])]
        layers = [base + part for part in parts]
        scales = [tensors.get(f"{layer}.weight_scale") for layer in layers]
        same = all(
            layer in formats and s is not None and torch.equal(s, scales[0])
            for layer, s in zip(layers, scales, strict=True)
        )
        if same:
            inputs = [tensors[k] for layer in layers if (k := f"{layer}.input_scale") in tensors]
            tensors[f"{base}qkv.weight_scale"] = scales[0]
            if inputs:
                tensors[f"{base}qkv.input_scale"] = torch.stack(inputs).amax(0)
            formats[f"{base}qkv"] = formats[first]
        for layer in layers:
            if not same and layer in formats:
                tensors[f"{layer}.weight"] = dequantise(tensors, layer, torch.bfloat16)
            formats.pop(layer, None)
            for companion in COMPANIONS:
                tensors.pop(f"{layer}.{companion}", None)


def dequantise(tensors: Mapping[str, Tensor], layer: str, dtype: torch.dtype) -> Tensor:
    """The weight of one fp8 layer in dtype; the product is taken in float32. A missing scale counts as 1."""
    weight = tensors[f"{layer}.weight"].float()
    scale = tensors.get(f"{layer}.weight_scale")
    if scale is not None:
        scale = scale.float()
        weight = weight * (scale if scale.ndim in (0, 2) else scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return weight.to(dtype)


def dequantise_all(tensors: Mapping[str, Tensor], formats: Formats, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every quantised layer in dtype, companions gone."""
    gone = {f"{layer}.{companion}" for layer in formats for companion in COMPANIONS}
    out = {k: v for k, v in tensors.items() if k not in gone}
    for layer in formats:
        out[f"{layer}.weight"] = dequantise(tensors, layer, dtype)
    return out


def quantise_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight -> (float8_e4m3fn weight, float32 scalar scale), scale = amax / 448."""
    scale = (weight.abs().amax().float() / 448.0).clamp(min=1e-12)
    return (weight.float() / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale
