"""Files of quantisers that are not run here: known by the tensors beside their weights, refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, NoReturn

from torch import Tensor

from .errors import WeightsError, some
from .layouts import FP8
from .layouts import PLAIN as PLAIN_TYPES

FLOATS = PLAIN_TYPES
READABLE = (*FLOATS, *FP8.values())
READ = "bf16, fp16, fp32, GGUF and ComfyUI's fp8, mxfp8, nvfp4, int8 and 4-bit formats"
PLAIN = "Use the bf16 or fp8 file of the same model."
HOST = {  # what a recent ComfyUI does with its own formats, by part
    "transformer": "Load it with ComfyUI's own Load Diffusion Model and put Z-Image Accelerate behind that, "
    "or use the bf16 or fp8 file of the same model.",
    "text_encoder": "Load it with ComfyUI's own Load CLIP, type lumina2, or use the bf16 or fp8 file.",
}


class Quantiser(NamedTuple):
    """A program or format, and endings of names that only its files have, after a layer's path."""

    label: str
    endings: tuple[str, ...]


QUANTISERS = (  # the first that fits
    Quantiser("nunchaku (SVDQuant)", (".wscales", ".smooth_factor", ".smooth_factor_orig", ".wcscales")),
    Quantiser("SDNQ", (".svd_up", ".svd_down", ".zero_point", ".scale")),
    Quantiser(
        "bitsandbytes",
        (".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4", ".SCB"),
    ),
    Quantiser("optimum-quanto", ("weight._data", "weight._scale")),
    Quantiser("torchao", ("._weight_qdata", "._weight_scale", "._weight_zero_point", ":qdata")),
    Quantiser("NVIDIA ModelOpt", (".weight_quantizer._scale", ".weight_quantizer._amax")),
    Quantiser("compressed-tensors", (".weight_packed", ".weight_shape", ".weight_zero_point")),
    Quantiser("GPTQ, AWQ or AutoRound", (".qweight", ".qzeros", ".g_idx")),
    Quantiser("HQQ", (".W_q",)),
    Quantiser("MLX", (".biases",)),
)


def quantiser_of(keys: Iterable[str]) -> tuple[Quantiser, str] | None:
    """The quantiser that wrote a file with these names, and one of them that tells."""
    keys = list(keys)
    for quantiser in QUANTISERS:
        for key in keys:
            if key.endswith(quantiser.endings):
                return quantiser, key
    return None


def refuse_quantisers(name: str, kind: str, keys: Iterable[str]) -> None:
    """Raises WeightsError when a quantiser that is not run here wrote the file."""
    if found := quantiser_of(keys):
        _refuse(name, kind, f"is quantised by {found[0].label} (it has {found[1]})", in_host=False)


def refuse_format(name: str, kind: str, layer: str, found: object) -> NoReturn:
    """For a marker with a format that is not read here; ComfyUI's own loader knows what it is."""
    _refuse(name, kind, f"stores {layer} as {repr(found)[:60]}", in_host=True)


def refuse_layer(
    name: str, kind: str, layer: str, weight: Tensor, scale: Tensor | None, spec: dict | None
) -> NoReturn:
    """For a layer whose weight and scale are of types that are not read here as such."""
    stored = str(weight.dtype).removeprefix("torch.")
    if spec is not None:
        found = f"says that {layer} is {spec['format']} and stores it as {stored}: it was converted wrongly"
    elif scale is not None and scale.element_size() == 1 and weight.is_floating_point():
        found = f"stores {layer} in {stored} with block scales of one byte, as mxfp8 does, without a marker"
    elif scale is not None and weight.is_floating_point():
        found = f"has scales beside {layer}.weight in {stored}, which needs none, and no word of their use"
    elif scale is not None and scale.element_size() == 1:
        found = f"stores {layer} in {stored} with scales of one byte, as nvfp4 does, without a marker"
    else:
        found = f"stores {layer} in {stored}" + (
            " with scales and without a marker" if scale is not None else ""
        )
    _refuse(name, kind, found, in_host=False)


def refuse_whole_numbers(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises WeightsError when weights are of a type that is not computed with."""
    found = [f"{key} ({value.dtype})" for key, value in tensors.items() if value.dtype not in READABLE]
    if found:
        raise WeightsError(
            f"{name} holds {len(found)} tensors that are no floating numbers: {some(found)}. It is quantised "
            f"in a way that is not known here. {PLAIN}"
        )


def _refuse(name: str, kind: str, found: str, in_host: bool) -> NoReturn:
    advice = HOST.get(kind, PLAIN) if in_host else PLAIN
    raise WeightsError(f"{name} {found}. This loader reads {READ}. {advice}")
