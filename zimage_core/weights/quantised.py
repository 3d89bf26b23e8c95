"""fp8 layouts in files -> one form: `<layer>.weight` in fp8, `<layer>.weight_scale`, and a format per layer.

W = weight * weight_scale, whatever the file calls the scale, and whether or not a marker says so. Markers
are ComfyUI's `<layer>.comfy_quant`, or the same in the file's metadata, and the older `scaled_fp8`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from .errors import WeightsError, some
from .keys import LEFTOVERS
from .quantisers import FLOATS, FP8, refuse_format, refuse_layer

NAMES = {  # of a layer's scales in files -> ours. DeepSeek's "inv" is a factor of the weight like the others.
    "weight_scale": "weight_scale",
    "scale_weight": "weight_scale",
    "weight_scale_inv": "weight_scale",
    "input_scale": "input_scale",
    "scale_input": "input_scale",
}
COMPANIONS = ("weight_scale", "input_scale")
METADATA = "_quantization_metadata"
SHAPES = "one value, one per row, or one per block of rows and columns"
LARGEST = 100.0  # of plain weights, by far; scaled fp8 goes up to 448 or 57344
BLOCK = 128  # rows and columns to a scale where neither divides the weight (DeepSeek-V3, section 3.3)

# Formats of ComfyUI and of converters for it; the scale's shape says what the ending says once more.
FORMAT = re.compile(rf"({'|'.join(FP8)})(_tensorwise|_rowwise|_blockwise|_block3d)?")
SPEC_KEYS = {"format", "full_precision_matrix_mult", "group_size", "block_size", "orig_shape", "orig_dtype"}

FNUZ = (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)

Formats = dict[str, dict]  # layer path -> {"format": "float8_e4m3fn", ...}


def normalise(
    name: str,
    kind: str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    prefix: str = "",
    root: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Formats]:
    """Tensors in the one form, and the quantised layers.

    name, kind: of the file and the part, for messages. tensors: of the part, without `prefix`. root: of the
    whole file, where a marker for all its parts may lie.

    Raises WeightsError for a format that is not read here, and for scales that do not belong to the weights.
    """
    out, specs = dict(tensors), dict(_specs(name, kind, tensors, metadata, prefix))
    for key in [k for k in out if k.endswith(".comfy_quant")]:
        del out[key]
    full_precision = False
    for marker in (out.pop("scaled_fp8", None), (root or {}).get("scaled_fp8")):
        full_precision |= marker is not None and marker.nelement() == 2
    for layer, spec in specs.items():
        _check_spec(name, kind, layer, spec)
    _rename_scales(name, out)

    formats: Formats = {}
    scaled = {k.removesuffix(".weight_scale") for k in out if k.endswith(".weight_scale")}
    for layer in sorted(scaled | specs.keys()):
        weight, scale = out.get(f"{layer}.weight"), out.get(f"{layer}.weight_scale")
        if weight is None:
            raise WeightsError(
                f"{name} says how {layer}.weight is quantised and does not hold it: tensors were renamed or "
                "left out. Download the file again or choose another."
            )
        if weight.dtype in FLOATS and layer not in specs and not scale.is_meta and bool((scale == 1).all()):
            del out[f"{layer}.weight_scale"]  # a scale that says nothing, as some converters write for all
            continue
        if weight.dtype not in FP8.values():
            refuse_layer(name, kind, layer, weight, scale, specs.get(layer))
        _check_scale(name, kind, layer, weight, scale)
        formats[layer] = _format(name, layer, weight, specs.get(layer), full_precision)
    _check_complete(name, out, formats)
    if not formats:
        _check_unscaled(name, out)
    _drop_input_scales(out, formats)
    for key, value in out.items():  # the types of fp8 that nothing computes with
        if value.dtype in FNUZ and key.removesuffix(".weight") not in formats:
            out[key] = value.bfloat16()
    return out, formats


def _specs(
    name: str, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], prefix: str
) -> Iterator[tuple[str, dict]]:
    """What markers say about each layer."""

    def broken(place: str, found: object) -> NoReturn:
        raise WeightsError(
            f"{name} has quantisation data that cannot be read in {place}: {str(found)[:60]!r}, expected "
            '{"format": ...} for each layer. Download the file again or choose another.'
        )

    if METADATA in metadata:
        try:
            layers = json.loads(metadata[METADATA])["layers"]
            items = [(k[len(prefix) :], spec) for k, spec in layers.items() if k.startswith(prefix)]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            broken("its metadata", metadata[METADATA])
        for layer, spec in items:
            if LEFTOVERS[kind].match(f"{layer}."):
                continue
            if not isinstance(spec, dict):
                broken(f"its metadata for {layer}", spec)
            yield layer, spec
    for key, value in tensors.items():
        if not key.endswith(".comfy_quant"):
            continue
        if value.dtype != torch.uint8 or value.is_meta:
            broken(key, f"{value.numel()} values of {value.dtype}")
        text = bytes(value.flatten().tolist())
        try:
            spec = json.loads(text)
        except (ValueError, RecursionError):
            broken(key, text)
        if not isinstance(spec, dict):
            broken(key, text)
        yield key.removesuffix(".comfy_quant"), spec


def _check_spec(name: str, kind: str, layer: str, spec: dict) -> None:
    format_name = spec.get("format")
    if not isinstance(format_name, str) or not FORMAT.fullmatch(format_name):
        refuse_format(name, kind, layer, format_name)
    unknown = [key for key, value in spec.items() if key not in SPEC_KEYS and value]
    if unknown:
        raise WeightsError(
            f"{name}: layer {layer} is {format_name} with {some(unknown)}, which is not known here, so its "
            "weights cannot be computed. Use the bf16 file of the same model."
        )


def _rename_scales(name: str, tensors: dict[str, Tensor]) -> None:
    for key in list(tensors):
        layer, _, suffix = key.rpartition(".")
        ours = f"{layer}.{NAMES.get(suffix, suffix)}"
        if suffix not in NAMES or ours == key:
            continue
        if suffix == "scale_input" and tensors[key].numel() == 1 and float(tensors[key]) == 1.0:
            del tensors[key]  # means "none", as ComfyUI reads it
            continue
        if ours in tensors:
            raise WeightsError(
                f"{name} has two scales for one layer, {key} and {ours}: which one counts cannot be told. "
                "Use another file of the same model."
            )
        tensors[ours] = tensors.pop(key)


def _check_scale(name: str, kind: str, layer: str, weight: Tensor, scale: Tensor | None) -> None:
    if scale is None:
        raise WeightsError(
            f"{name} says that {layer} is scaled {str(weight.dtype).removeprefix('torch.')} and holds no "
            f"{layer}.weight_scale: it is incomplete. Download it again."
        )
    if scale.dtype not in FLOATS:
        refuse_layer(name, kind, layer, weight, scale, None)
    if _blocks(scale, weight) is None:
        raise WeightsError(
            f"{name}: {layer} has a weight of shape {tuple(weight.shape)} with scales of shape "
            f"{tuple(scale.shape)}, expected {SHAPES}. Use the bf16 file of the same model."
        )
    wrong = scale.new_empty(0) if scale.is_meta else scale[~(torch.isfinite(scale) & (scale > 0))]
    if wrong.numel():
        raise WeightsError(
            f"{name}: {layer}.weight_scale holds {float(wrong[0]):g}, expected finite numbers above 0: the "
            "file is damaged or was converted wrongly. Download it again or choose another."
        )


def _format(name: str, layer: str, weight: Tensor, spec: dict | None, full_precision: bool) -> dict:
    stored = str(weight.dtype).removeprefix("torch.")
    if spec is not None:
        said = FORMAT.fullmatch(spec["format"])[1]
        if said != stored:
            raise WeightsError(
                f"{name}: layer {layer} is said to be {said} and is stored as {stored}: the file was "
                "converted wrongly. Use another file of the same model."
            )
        full_precision = bool(spec.get("full_precision_matrix_mult"))
    return {"format": stored} | ({"full_precision_matrix_mult": True} if full_precision else {})


def _check_complete(name: str, tensors: Mapping[str, Tensor], formats: Formats) -> None:
    """Where some fp8 matrices have scales, all have: one without has lost its own."""
    bare = [
        key
        for key, value in tensors.items()
        if value.dtype in FP8.values()
        and value.ndim == 2
        and key.endswith(".weight")
        and key.removesuffix(".weight") not in formats
    ]
    if formats and bare:
        raise WeightsError(
            f"{name} has scales for {len(formats)} fp8 layers and none for {len(bare)} others: {some(bare)}. "
            "It is incomplete: download it again or choose another file."
        )


def _check_unscaled(name: str, tensors: Mapping[str, Tensor]) -> None:
    """fp8 without any scale is the weights themselves; larger values mean that the scales were lost.

    One matrix tells, the smallest, so that it costs no time.
    """
    fp8 = [(k, v) for k, v in tensors.items() if v.dtype in FP8.values() and k.endswith(".weight")]
    matrices = {k: v for k, v in fp8 if v.ndim == 2 and not v.is_meta}
    if not matrices:
        return
    key = min(matrices, key=lambda k: matrices[k].numel())
    largest = float(matrices[key].float().abs().max())
    if largest > LARGEST:
        raise WeightsError(
            f"{name} holds fp8 values up to {largest:g} in {key} and no scales, expected weights below "
            f"{LARGEST:g}: its scales were left out. Download it again or choose another file."
        )


def _drop_input_scales(tensors: dict[str, Tensor], formats: Formats) -> None:
    """Those of layers that are not quantised, and those that are not one positive number.

    An input is then scaled by what it is, or not at all.
    """
    for key in [k for k in tensors if k.endswith(".input_scale")]:
        scale = tensors[key]
        used = key.removesuffix(".input_scale") in formats and scale.numel() == 1 and scale.dtype in FLOATS
        if not used or not 0 < float(scale) < float("inf"):
            del tensors[key]


def _blocks(scale: Tensor, weight: Tensor) -> tuple[int, int] | None:
    """Rows and columns of the weight to each value of its scale; None where the two do not fit.

    Scales are of shape [], [1], [rows], [rows, 1], [blocks of rows, blocks of columns], or
    [rows, blocks of columns, 1].
    """
    if weight.ndim == 0 or weight.numel() == 0 or scale.numel() == 0:
        return None
    rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
    if scale.numel() == 1:
        return rows, columns
    if scale.shape[0] == rows and scale.numel() == rows:
        return 1, columns
    if scale.ndim == 3 and scale.shape[0] == rows and scale.shape[2] == 1:
        scale = scale[..., 0]
    if scale.ndim != 2 or weight.ndim != 2:
        return None
    height, width = (_block(size, count) for size, count in zip(weight.shape, scale.shape, strict=True))
    return (height, width) if height and width else None


def _block(size: int, count: int) -> int | None:
    """The size of the blocks when `count` of them cover `size`."""
    if -(-size // BLOCK) == count:
        return BLOCK
    return size // count if size % count == 0 else None


def dequantise(tensors: Mapping[str, Tensor], layer: str, dtype: torch.dtype) -> Tensor:
    """The weight of one quantised layer in dtype; the product is taken in float32."""
    weight, scale = tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"].float()
    height, width = _blocks(scale, weight)
    rows = weight.shape[0]
    matrix = weight.float().reshape(rows, -1)
    if scale.numel() == 1:
        factors = scale.reshape(1, 1)
    else:
        factors = scale.reshape(-(-rows // height), -1)
        factors = factors.repeat_interleave(height, 0)[:rows]
        factors = factors.repeat_interleave(width, 1)[:, : matrix.shape[1]]
    return (matrix * factors).reshape(weight.shape).to(dtype)


def dequantise_all(tensors: Mapping[str, Tensor], formats: Formats, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every quantised layer in dtype, companions gone."""
    gone = {f"{layer}.{companion}" for layer in formats for companion in COMPANIONS}
    out = {k: v for k, v in tensors.items() if k not in gone}
    for layer in formats:
        out[f"{layer}.weight"] = dequantise(tensors, layer, dtype)
    return out


def fuse_quantised_qkv(tensors: dict[str, Tensor], formats: Formats, parts: tuple[str, ...]) -> None:
    """Prepare split q, k, v for fusing, in place.

    One equal scale becomes that of the fused layer, others are applied.
    """
    ends = [(layer, part) for layer in formats for part in parts if layer.endswith(f".attention.{part}")]
    for base in sorted({layer.removesuffix(part) for layer, part in ends}):
        layers = [base + part for part in parts]
        if _one_scale(tensors, formats, layers):
            inputs = [tensors[k] for layer in layers if (k := f"{layer}.input_scale") in tensors]
            tensors[f"{base}qkv.weight_scale"] = tensors[f"{layers[0]}.weight_scale"]
            if inputs:
                tensors[f"{base}qkv.input_scale"] = torch.stack([v.reshape(()) for v in inputs]).amax(0)
            formats[f"{base}qkv"] = formats[layers[0]]
        else:
            for layer in layers:
                if layer in formats:
                    tensors[f"{layer}.weight"] = dequantise(tensors, layer, torch.bfloat16)
        for layer in layers:
            formats.pop(layer, None)
            for companion in COMPANIONS:
                tensors.pop(f"{layer}.{companion}", None)


def _one_scale(tensors: Mapping[str, Tensor], formats: Formats, layers: list[str]) -> bool:
    """Whether all of these layers are stored alike, with one and the same scale."""
    if any(layer not in formats or formats[layer] != formats[layers[0]] for layer in layers):
        return False
    scales = [tensors[f"{layer}.weight_scale"] for layer in layers]
    return all(s.numel() == 1 and float(s) == float(scales[0]) for s in scales)


def quantise_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight -> (float8_e4m3fn weight, float32 scalar scale), scale = amax / 448."""
    scale = (weight.abs().amax().float() / 448.0).clamp(min=1e-12)
    return (weight.float() / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale
