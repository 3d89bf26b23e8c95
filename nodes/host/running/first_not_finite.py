"""The layer where values stop being finite: another pass with a look at each, after a result that is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ....zimage_core.weights.values import finite


class _Found(Exception):
    """Ends the pass: what comes later says nothing."""


def first_not_finite(network: nn.Module, again: Callable[[], Any]) -> str:
    """Like "comes out of layers.3.feed_forward.w2", or "" when all that layers take and give is finite.

    again: runs the network as before. Values are looked at in front of and behind each module without parts,
    so "goes into" means that something between two of them is to blame, such as a product or the attention.
    """
    found: list[str] = []

    def look(values: Iterable[Any], where: str) -> None:
        tensors = (value for value in values if isinstance(value, Tensor) and value.is_floating_point())
        if not found and not all(map(finite, tensors)):
            found.append(where)
        if found:
            raise _Found

    def watched(name: str, module: nn.Module) -> list[Any]:
        out = f"comes out of {name}"
        return [
            module.register_forward_pre_hook(lambda _, args: look(args, f"goes into {name}")),
            module.register_forward_hook(
                lambda _, args, result: look(result if isinstance(result, tuple) else (result,), out)
            ),
        ]

    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    hooks = [hook for name, module in leaves for hook in watched(name, module)]
    try:
        with contextlib.suppress(_Found):
            again()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


def check_pictures(vae: Any) -> None:
    """From now on what this VAE of the host's decodes is finite or an error, in place of a black picture."""
    vae.first_stage_model.decoder.register_forward_hook(_decoded)


def _decoded(decoder: nn.Module, args: tuple, result: Tensor) -> None:
    if finite(result):
        return
    if not finite(args[0]):
        raise ValueError(
            "the latent to decode holds values that are not finite (NaN or infinity): look at the node that "
            "made it."
        )
    layer = first_not_finite(decoder, lambda: decoder.forward(*args))
    raise ValueError(
        f"the VAE gave values that are not finite (NaN or infinity). The first such value {layer} of its "
        f"decoder, in {str(args[0].dtype).removeprefix('torch.')}: start ComfyUI with --bf16-vae or "
        "--fp32-vae, or download the VAE again."
    )


def check_features(clip: Any, encoded: list, again: Callable[[], Any]) -> None:
    """encoded: CONDITIONING that this CLIP of the host's gave; again: makes it once more.

    Raises ValueError naming the layer when features are not finite.
    """
    if all(finite(features) for features, _ in encoded):
        return
    layer = first_not_finite(clip.cond_stage_model, again)
    where = f" The first such value {layer}." if layer else ""
    raise ValueError(
        f"the text encoder gave values that are not finite (NaN or infinity).{where} Download its file "
        "again, choose another, or start ComfyUI with --bf16-text-enc or --fp32-text-enc."
    )
