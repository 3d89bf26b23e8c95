"""Quantised layers in files -> one form: `<layer>.weight` as stored, companions, and a format per layer.

Whatever the file calls a scale, and whether or not a marker says so. Markers are ComfyUI's
`<layer>.comfy_quant`, or the same in the file's metadata, and the older `scaled_fp8`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import torch
from torch import Tensor

from .errors import LONGEST, WeightsError, some
from .keys import LEFTOVERS
from .layouts import COMPANIONS, FP8, LAYOUTS, SCALE, dequantise, parts_of
from .quantisers import FLOATS, refuse_format, refuse_layer

NAMES = {  # of a layer's scales in files -> ours. DeepSeek's "inv" is a factor of the weight like the others.
    "weight_scale": "weight_scale",
    "scale_weight": "weight_scale",
    "weight_scale_inv": "weight_scale",
    "input_scale": "input_scale",
    "scale_input": "input_scale",
}
LONGEST_MARKER = 65_536  # bytes
METADATA = "_quantization_metadata"
LARGEST = 100.0  # of plain weights, by far; scaled fp8 goes up to 448 or 57344

# Formats of ComfyUI and of converters for it; the scale's shape says what the ending says once more.
FORMAT = re.compile(rf"({'|'.join(FP8)})(_tensorwise|_rowwise|_blockwise|_block3d)?")
HARMLESS = {"format", "block_size", "group_size", "orig_shape", "orig_dtype", "full_precision_matrix_mult"}
EXPECTED = {  # of the options that change weights: what their values are
    "convrot_groupsize": ("a number of columns", lambda value: type(value) is int and 1 <= value < 2**31),
    "group_size": ("a number of columns", lambda value: type(value) is int and 1 <= value < 2**31),
    "convrot": ("true or false", lambda value: value in (None, False, True)),
    "type": ("a type of ggml's blocks", lambda value: isinstance(value, str)),
    "linear_dtype": ("int4 or int8", lambda value: value in ("int4", "int8")),
}

FNUZ = (torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)

Formats = dict[str, dict]  # layer path -> {"format": "float8_e4m3fn", ...}


def renamed_metadata(metadata: Mapping[str, str], rename: Callable[[str], str]) -> dict[str, str]:
    """The same with other names of layers; what cannot be read is left for `normalise` to refuse."""
    try:
        found = json.loads(metadata[METADATA])
        layers = {rename(layer): spec for layer, spec in found["layers"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return dict(metadata)
    return {**metadata, METADATA: json.dumps({**found, "layers": layers})}


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
    found = _specs(name, kind, tensors, metadata, prefix)
    out, specs = dict(tensors), {layer: _checked(name, kind, layer, spec) for layer, spec in found}
    for key in [k for k in out if k.endswith(".comfy_quant")]:
        del out[key]
    full_precision = False
    for marker in (out.pop("scaled_fp8", None), (root or {}).get("scaled_fp8")):
        full_precision |= marker is not None and marker.nelement() == 2
    _rename_scales(name, out)

    formats: Formats = {}
    ends = tuple(f".{companion}" for companion in COMPANIONS - {"input_scale"})
    scaled = {k.rpartition(".")[0] for k in out if k.endswith(ends)}
    for layer in sorted(scaled | specs.keys()):
        parts = parts_of(out, layer)
        weight, scale = parts.get("weight"), parts.get("weight_scale")
        if weight is None:
            raise WeightsError(
                f"{name} says how {layer[:LONGEST]}.weight is quantised and does not hold it: tensors were "
                "renamed or left out. Download the file again or choose another."
            )
        plain = weight.dtype in FLOATS and layer not in specs and scale is not None and not scale.is_meta
        if plain and bool((scale == 1).all()):
            del out[f"{layer}.weight_scale"]  # a scale that says nothing, as some converters write for all
            continue
        formats[layer] = _format(name, kind, layer, parts, specs.get(layer), full_precision)
        _check_parts(name, kind, layer, parts, formats[layer])
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
                broken(f"its metadata for {layer[:LONGEST]}", spec)
            yield layer, spec
    for key, value in tensors.items():
        if not key.endswith(".comfy_quant"):
            continue
        if value.dtype != torch.uint8 or value.numel() > LONGEST_MARKER:
            broken(key, f"{value.numel()} values of {value.dtype}")
        text = bytes(value.flatten().tolist())
        try:
            spec = json.loads(text)
        except (ValueError, RecursionError):
            broken(key, text)
        if not isinstance(spec, dict):
            broken(key, text)
        yield key.removesuffix(".comfy_quant"), spec


def _checked(name: str, kind: str, layer: str, spec: dict) -> dict:
    """A marker's content with one name for each format, and its nested `params` beside the others."""
    layer = layer[:LONGEST]  # a name out of metadata may be of any length
    if isinstance(params := spec.get("params"), dict):
        spec = {**params, **{key: value for key, value in spec.items() if key != "params"}}
    format_name = spec.get("format")
    if not isinstance(format_name, str):
        refuse_format(name, kind, layer, format_name)
    if match := FORMAT.fullmatch(format_name):
        format_name = match[1]
    if format_name not in LAYOUTS:
        refuse_format(name, kind, layer, format_name)
    known = HARMLESS.union(LAYOUTS[format_name].options)
    unknown = [key for key, value in spec.items() if key not in known and value]
    if unknown:
        raise WeightsError(
            f"{name}: layer {layer} is {format_name} with {some(unknown)}, which is not known here, so its "
            "weights cannot be computed. Use the bf16 file of the same model."
        )
    for key in spec.keys() & EXPECTED.keys() & set(LAYOUTS[format_name].options):
        expected, holds = EXPECTED[key]
        if not holds(spec[key]):
            raise WeightsError(
                f"{name}: layer {layer} is {format_name} with {key} {str(spec[key])[:60]!r}, expected "
                f"{expected}. Download the file again or choose another."
            )
    return {**spec, "format": format_name}


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


def _format(
    name: str, kind: str, layer: str, parts: dict[str, Tensor], spec: dict | None, full_precision: bool
) -> dict:
    """As ComfyUI's markers write it: the format, and those options that change what the layer is."""
    weight, scale = parts["weight"], parts.get("weight_scale")
    stored = str(weight.dtype).removeprefix("torch.")
    if spec is None:
        if weight.dtype not in FP8.values() or scale is None or scale.dtype not in FLOATS:
            refuse_layer(name, kind, layer, weight, scale, None)
        return {"format": stored} | ({"full_precision_matrix_mult": True} if full_precision else {})
    layout = LAYOUTS[spec["format"]]
    if weight.dtype not in layout.stored:
        if weight.dtype in FP8.values() and spec["format"] in FP8:
            raise WeightsError(
                f"{name}: layer {layer} is said to be {spec['format']} and is stored as {stored}: the file "
                "was converted wrongly. Use another file of the same model."
            )
        refuse_layer(name, kind, layer, weight, scale, spec)
    chosen = {key: spec[key] for key in layout.options if spec.get(key)}
    return {"format": spec["format"], **chosen}


def _check_parts(name: str, kind: str, layer: str, parts: dict[str, Tensor], spec: dict) -> None:
    layout = LAYOUTS[spec["format"]]
    if parts["weight"].numel() == 0:
        raise WeightsError(
            f"{name}: {layer} is {spec['format']} of shape {tuple(parts['weight'].shape)} and holds nothing: "
            "it is damaged. Download it again or choose another file."
        )
    for companion in layout.needs:
        if companion not in parts:
            raise WeightsError(
                f"{name} says that {layer} is scaled {spec['format']} and holds no {layer}.{companion}: "
                "it is incomplete. Download it again."
            )
    others = parts.keys() - {"weight", "input_scale", *layout.needs, *layout.may_have}
    if others:
        raise WeightsError(
            f"{name}: {layer} is {spec['format']} and has {some(sorted(others))}, which that format has not. "
            "Use the bf16 file of the same model."
        )
    if spec["format"] in FP8 and parts["weight_scale"].dtype not in FLOATS:
        refuse_layer(name, kind, layer, parts["weight"], parts["weight_scale"], None)
    if problem := layout.problem(parts, spec):
        raise WeightsError(
            f"{name}: {layer} is {spec['format']} and has {problem}. Use the bf16 file of the same model."
        )
    for companion, scale in parts.items():
        if companion in ("weight", "input_scale") or scale.is_meta or scale.dtype not in FLOATS:
            continue
        needed = companion in layout.needs  # a scale; others may be of either sign
        wrong = scale[~(torch.isfinite(scale) & (scale > 0 if needed else True))]
        if wrong.numel():
            raise WeightsError(
                f"{name}: {layer}.{companion} holds {float(wrong[0]):g}, expected finite numbers"
                f"{' above 0' if needed else ''}: the file is damaged or was converted wrongly. Download it "
                "again or choose another."
            )


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
    scaled = [layer for layer, spec in formats.items() if spec["format"] in FP8]
    if scaled and bare:
        raise WeightsError(
            f"{name} has scales for {len(scaled)} fp8 layers and none for {len(bare)} others: {some(bare)}. "
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


def dequantise_all(tensors: Mapping[str, Tensor], formats: Formats, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every quantised layer in dtype, companions gone."""
    gone = {f"{layer}.{companion}" for layer in formats for companion in COMPANIONS}
    out = {k: v for k, v in tensors.items() if k not in gone}
    for layer in formats:
        out[f"{layer}.weight"] = dequantise(tensors, layer, formats[layer], dtype)
    return out


def fuse_quantised_qkv(tensors: dict[str, Tensor], formats: Formats, parts: tuple[str, ...]) -> None:
    """Fuse split q, k, v that are stored alike, in place; of others the scales are applied.

    Alike is in one format, by rows without scales or with one equal scale.
    """
    ends = [(layer, part) for layer in formats for part in parts if layer.endswith(f".attention.{part}")]
    for base in sorted({layer.removesuffix(part) for layer, part in ends}):
        layers = [base + part for part in parts]
        if f"{base}qkv.weight" not in tensors and _stored_alike(tensors, formats, layers):
            formats[f"{base}qkv"] = formats[layers[0]]
            tensors[f"{base}qkv.weight"] = torch.cat([tensors.pop(f"{layer}.weight") for layer in layers])
            inputs = [tensors[k] for layer in layers if (k := f"{layer}.input_scale") in tensors]
            if f"{layers[0]}.weight_scale" in tensors:
                tensors[f"{base}qkv.weight_scale"] = tensors[f"{layers[0]}.weight_scale"]
            if inputs:
                tensors[f"{base}qkv.input_scale"] = torch.stack([v.reshape(()) for v in inputs]).amax(0)
        else:
            for layer in layers:
                if layer in formats:
                    tensors[f"{layer}.weight"] = dequantise(tensors, layer, formats[layer], torch.bfloat16)
        for layer in layers:
            formats.pop(layer, None)
            for companion in COMPANIONS:
                tensors.pop(f"{layer}.{companion}", None)


def _stored_alike(tensors: Mapping[str, Tensor], formats: Formats, layers: list[str]) -> bool:
    """Whether all of these layers are in one format, without scales or with one and the same."""
    if any(layer not in formats or formats[layer] != formats[layers[0]] for layer in layers):
        return False
    shapes = [tensors[f"{layer}.weight"].shape for layer in layers]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes):
        return False
    needs = LAYOUTS[formats[layers[0]]["format"]].needs
    if needs != SCALE:
        return not needs
    scales = [tensors[f"{layer}.weight_scale"] for layer in layers]
    return all(s.numel() == 1 and float(s) == float(scales[0]) for s in scales)


def quantise_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight -> (float8_e4m3fn weight, float32 scalar scale), scale = amax / 448."""
    scale = (largest(weight).float() / 448.0).clamp(min=1e-12)
    return (weight.float() / scale).clamp_(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def largest(weight: Tensor, dim: int | None = None) -> Tensor:
    """Of the absolute values; those of a dimension [..., 1]. No copy of the weight is made."""
    low, high = weight.aminmax(dim=dim, keepdim=dim is not None)
    return torch.maximum(-low, high)
