"""A MODEL made faster in the way that the user chose, and what that does on this machine, in a line each."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import torch

from ....zimage_core.acceleration.compiled import Compiled
from ....zimage_core.acceleration.graphs import Graphs
from ....zimage_core.model import backends, fused
from ....zimage_core.weights import WeightsError
from ....zimage_core.weights.checkpoint import telling_norm, variant_of
from .accelerate import NotZImage, accelerated
from .eight_bit import KINDS, eight_bit_kind, in_eight_bits, weights_for
from .graphs import with_graphs
from .merged import PREFIX, merged_weight
from .one_pass import COMPILED
from .step_cache import with_step_cache

Made = tuple[Any, list[str]]
NO_GRAPHS = "CUDA graphs: off, they need an NVIDIA card."
GRAPHS = "CUDA graphs: on, from the second step of a size on; not with nodes that patch attention or blocks."


def sped_up(model: Any, mode: str) -> Made:
    """(a clone of the MODEL, lines for the user). mode: a key of MODES.

    Raises NotZImage when the MODEL is something else.
    """
    ours, _ = accelerated(model)
    return MODES[mode](ours.clone())


def exact(model: Any) -> Made:
    """The same results to the bit."""
    if management.get_torch_device().type != "cuda" or torch.version.hip:
        return model, [NO_GRAPHS]
    with_graphs(model, Graphs())
    return model, [GRAPHS]


def auto(model: Any) -> Made:
    """What makes the same pictures up to rounding, and is never slower."""
    device = management.get_torch_device()
    fused.look_for_kernels(device)
    backends.look_at(device)
    kernels = "on" if device in fused.READY else "off, " + why_no_kernels(device)
    attention = "the one of this card" if backends.faster(device) else "as ComfyUI chooses it"
    model, lines = exact(model)
    return model, [f"Fused kernels: {kernels}.", f"Attention: {attention}.", *lines]


def why_no_kernels(device: torch.device) -> str:
    if device.type != "cuda":
        return "they need a graphics card"
    if fused.kernels() is None:
        return "they need the Python package triton (on Windows triton-windows)"
    return "they do not work on this card, the log says why"


def compiled(model: Any) -> Made:
    """Each block by torch.compile: one compilation for all of them, whatever the prompt and the size."""
    if reason := why_not_compiled():
        return exact_instead(model, "torch.compile", reason)
    options = model.model_options.setdefault("transformer_options", {})
    options[COMPILED] = Compiled(_tell)
    return model, ["torch.compile: on. The first run compiles for a minute; prompts and sizes do not again."]


def _tell(line: str) -> None:
    from ..page.run_notes import tell  # here: models are also loaded where there is no page

    tell([line])


def why_not_compiled() -> str:
    """A reason, or nothing."""
    device = management.get_torch_device()
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "it needs the Python package triton (on Windows triton-windows)"
    from torch._inductor.cpp_builder import get_cpp_compiler  # here: it takes a second

    try:
        get_cpp_compiler()
    except Exception:  # of a class of torch's own
        return "it needs a C++ compiler"
    return ""


def eight_bit(model: Any) -> Made:
    """The blocks' matrices and what they multiply in 8 bits, by the card's own units."""
    kind = eight_bit_kind()
    try:
        weights = weights_for(model, kind)
    except (NotZImage, WeightsError) as error:
        return exact_instead(model, "8 bits", str(error).rstrip("."))
    return in_eight_bits(model, weights, kind), [f"8 bits: {KINDS[kind]}"]


def cache(model: Any) -> Made:
    """Six steps of ten."""
    config = model.get_model_object("diffusion_model").config
    norm = merged_weight(model, PREFIX + telling_norm(config))
    if config.full_size and variant_of(config, norm) == "Turbo":
        return exact_instead(model, "Step cache", "this is Turbo, whose few steps are all needed")
    line = "Step cache: on, for 16 steps and more; each run says how many it computed."
    return with_step_cache(model), [line]


def exact_instead(model: Any, what: str, reason: str) -> Made:
    model, lines = exact(model)
    return model, [f"{what}: off, {reason}. Results are exact instead.", *lines]


MODES: dict[str, Callable[[Any], Made]] = {
    "auto": auto,
    "exact": exact,
    "compiled": compiled,
    "8-bit": eight_bit,
    "cache": cache,
}
