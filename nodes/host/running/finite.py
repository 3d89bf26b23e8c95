"""A result that is not finite, which the host would turn into a black picture: where it comes from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....zimage_core.weights import WeightsError, read_transformer
from ....zimage_core.weights.errors import some
from ....zimage_core.weights.values import finite, not_finite
from .first_not_finite import first_not_finite
from .packed import packed_layers

KEY = "zimage_finite"
WHAT = "sampling gave values that are not finite (NaN or infinity)"


def check_results(model: Any) -> None:
    """From now on every run of this MODEL ends in finite values or in an error; each is looked at once."""
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _checked)


def _checked(executor: Any, noise: Tensor, latent: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    guider = executor.class_obj
    conds = {kind: [cond.copy() for cond in conds] for kind, conds in guider.conds.items()}

    def again() -> None:
        guider.conds = conds
        executor(noise, latent, *args, **kwargs)

    samples = executor(noise, latent, *args, **kwargs)
    require_finite(samples, guider, noise, latent, again)
    return samples


def require_finite(
    samples: Tensor, guider: Any, noise: Tensor, latent: Tensor, again: Callable[[], Any]
) -> None:
    """samples: what the host's guider made of noise and latent. Raises ValueError naming the cause.

    again: the same run once more, for the layer where such values begin.
    """
    if torch.isfinite(samples).all():
        return
    for cause in _causes(guider, noise, latent, again):
        raise ValueError(f"{WHAT}. {cause}")


def _causes(guider: Any, noise: Tensor, latent: Tensor, again: Callable[[], Any]) -> Iterator[str]:
    """The most likely first; the last one is what is left. Reading all weights can take half a minute."""
    if not finite(latent) or not finite(noise):
        yield "The latent or noise that it started from holds such values: look at the node that made it."
    conds = [cond for conds in guider.original_conds.values() for cond in conds]
    if any(not finite(cond["cross_attn"]) for cond in conds if isinstance(cond.get("cross_attn"), Tensor)):
        yield "The encoded prompt holds such values: check the text encoder's file, or load another."
    patcher = guider.model_patcher
    if patched := [
        key for key, patches in patcher.patches.items() if not all(map(finite, _tensors(patches)))
    ]:
        yield f"A LoRA holds such values for {some(patched)}: take it out, or download it again."
    if names := [*not_finite(_weights(patcher)), *_packed(patcher)]:
        yield f"The weights hold such values in {some(names)}: download the file again or choose another."
    layer = first_not_finite(patcher.get_model_object("diffusion_model"), again)
    if not layer:
        yield (
            "All that the model's layers gave in a second run is finite: the sampler, its guidance (cfg) or "
            "another extension makes such values."
        )
    yield (
        f"The weights, the prompt and the latent are finite: numbers overflowed in {_precision(patcher)}. "
        f"The first such value {layer}. Load the weights with weight_dtype bf16 or fp32, and start ComfyUI "
        "without --force-fp16 and --use-sage-attention."
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in the host's patches: nested tuples, lists and adapters with their weights."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "weights"):
        yield from _tensors(value.weights)


def _weights(patcher: Any) -> dict[str, Tensor]:
    """As they are in memory; of a MODEL that streams them, as they are in a file that is read here."""
    if getattr(patcher, "is_dynamic", bool)():
        arguments = patcher.cached_patcher_init[1]  # of the loader: the file first
        with contextlib.suppress(WeightsError):
            return read_transformer(arguments[0]).tensors
    state = patcher.get_model_object("diffusion_model").state_dict()
    plain = {key: getattr(value, "_qdata", value) for key, value in state.items()}
    return {key: value for key, value in plain.items() if isinstance(value, Tensor)}


def _packed(patcher: Any) -> Iterator[str]:
    """Layers whose matrices are not finite: what they are packed in does not tell."""
    for name, layer in packed_layers(patcher.get_model_object("diffusion_model")).items():
        if not finite(layer.matrix(layer.weight, torch.float32)):
            yield f"{name}.weight"


def _precision(patcher: Any) -> str:
    model = patcher.model
    dtype = getattr(model, "manual_cast_dtype", None) or model.get_dtype()
    return str(dtype).removeprefix("torch.")
