"""A MODEL whose blocks multiply in 8 bits, made from one in more, by the host's own quantised operations."""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
import comfy.quant_ops
import comfy.utils
import torch

from ....zimage_core.weights import read_transformer
from ....zimage_core.weights.convert import in_memory
from ....zimage_core.weights.layerwise import Layerwise
from .accelerate import KEY as ACCELERATED
from .accelerate import NotZImage
from .merged import merged_weights, not_merged

# What a kind costs: relative L2 error of one velocity on random weights (bench formats).
KINDS = {
    "fp8": "fp8 (e4m3), LoRAs merged in, half the memory. Each step is about 5 % off: details differ.",
    "int8": "int8, rotated, LoRAs merged in, half the memory. Each step is about 2 % off: details differ.",
}
FORMATS = {"fp8": "float8_e4m3fn", "int8": "int8_tensorwise"}  # names of the host's
CHANGED = ("diffusion_model", "extra_conds")  # object patches of ours, which the new MODEL has no need of


def eight_bit_kind() -> str | None:
    """What this card multiplies faster than bfloat16: a key of KINDS, or None."""
    if management.get_torch_device().type != "cuda" or torch.version.hip:
        return None
    capability = torch.cuda.get_device_capability(management.get_torch_device())
    if capability >= (8, 9):
        return "fp8"
    return "int8" if capability >= (8, 0) else None


def weights_for(model: Any, kind: str | None) -> Layerwise:
    """Of a MODEL, to be made 8 bits. Raises NotZImage or WeightsError with the reason why they cannot be."""
    if kind is None:
        raise NotZImage("this machine has no card with 8-bit units that ComfyUI uses")
    if FORMATS[kind] not in comfy.quant_ops.QUANT_ALGOS:
        raise NotZImage(f"this ComfyUI does not compute in {kind}, newer ones do")
    if notes := not_merged(model):
        raise NotZImage(notes[0])
    weights = merged_weights(model)
    if weights.stored_as:
        raise NotZImage("this MODEL is stored in fewer than 16 bits already")
    return weights


def in_eight_bits(model: Any, weights: Layerwise, kind: str) -> Any:
    """A new MODEL of the same weights with their LoRAs; what else hangs on the old one hangs on it."""
    from ..loading.model import patcher_of  # here: loading knows how models run

    bar = comfy.utils.ProgressBar(100)

    def progress(done: int, total: int) -> None:
        management.throw_exception_if_processing_interrupted()
        bar.update_absolute(100 * done // total)

    checkpoint = read_transformer(in_memory(weights, kind, progress))
    made = patcher_of(checkpoint, None, (None, ()), disable_dynamic=True)
    made.model.latent_format = model.model.latent_format
    old = model.clone()  # so that none of its dictionaries is shared
    made.model_options = old.model_options
    made.object_patches = {k: v for k, v in old.object_patches.items() if k not in CHANGED}
    for name in ("wrappers", "callbacks"):
        ours, theirs = getattr(made, name), getattr(old, name)
        for kind_of_call, by_key in theirs.items():
            kept = {key: calls for key, calls in by_key.items() if key != ACCELERATED}
            ours[kind_of_call] = {**kept, **ours.get(kind_of_call, {})}
    return made
