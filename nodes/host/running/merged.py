"""The weights of a MODEL with its LoRAs merged in, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.lora
import comfy.model_management as management
import comfy.model_patcher
import torch
from torch import Tensor

from ....zimage_core.weights import read_transformer
from ....zimage_core.weights.layerwise import Layerwise
from .accelerate import NotZImage, adopt
from .packed import PackedLinear
from .s3dit import HostS3DiT

PREFIX = "diffusion_model."
WIDE = (torch.float32, torch.bfloat16, torch.float16)


def merged_weights(patcher: Any) -> Layerwise:
    """Of a Z-Image MODEL from any loader.

    Raises NotZImage for others, for weights that none can read, and for changes that no weights can hold.
    """
    network = readable(patcher)
    held = dict(_weights(network))
    narrow = any(value.dtype not in WIDE or hasattr(value, "_qdata") for value in held.values())
    described = {
        key: torch.empty(_shape(network, key, value), dtype=_kept(value), device="meta")
        for key, value in held.items()
    }
    checked = read_transformer(described)

    def value(key: str, dtype: torch.dtype) -> Tensor:
        return merged_weight(patcher, PREFIX + key).to(dtype)

    types = {key: tensor.dtype for key, tensor in checked.tensors.items()}
    stored_as = ["fewer than 16 bits"] if narrow else []
    return Layerwise("the MODEL", checked.config, types, patcher.model_size(), value, stored_as)


def readable(patcher: Any) -> HostS3DiT:
    """The network of a Z-Image MODEL from any loader, whose weights say all that it computes.

    Raises NotZImage as `merged_weights` does.
    """
    if beside := [*patcher.injections, *getattr(patcher, "weight_wrapper_patches", ())]:
        raise NotZImage(
            f"This MODEL is changed while it runs ({', '.join(beside[:2])}), of which its weights say "
            "nothing. Load its LoRAs with Load LoRA or Z-Image LoRA Loader, not in bypass mode, or take the "
            "MODEL as it is before that node."
        )
    network = patcher.get_model_object("diffusion_model")
    if not isinstance(network, HostS3DiT):
        network = adopt(patcher)
    if packed := next((key for key, _ in _weights(network) if _is_sealed(patcher, key)), None):
        raise NotZImage(
            f"This MODEL holds {packed} in a way that another extension alone can read. Load the file with "
            "the Z-Image loader."
        )
    return network


def not_merged(patcher: Any) -> list[str]:
    """A sentence about what is on the MODEL for some prompts alone."""
    hooks = sum(map(bool, patcher.hook_patches.values()))
    if not hooks:
        return []
    which = "A LoRA" if hooks == 1 else f"{hooks} LoRAs"
    return [f"{which} of single prompts (hooks): not merged in, since other prompts run without."]


def _weights(network: HostS3DiT) -> Iterator[tuple[str, Tensor]]:
    """Without the scales beside them."""
    for key, value in network.named_parameters():
        if key.rpartition(".")[2] in ("weight", "bias") or key.endswith("pad_token"):
            yield key, value


def _is_sealed(patcher: Any, key: str) -> bool:
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, PREFIX + key)
    return convert is None and not weight.is_floating_point()


def _shape(network: torch.nn.Module, key: str, value: Tensor) -> torch.Size:
    layer, _, name = key.rpartition(".")
    module = network.get_submodule(layer)
    return module.matrix_shape if name == "weight" and isinstance(module, PackedLinear) else value.shape


def _kept(value: Tensor) -> torch.dtype:
    return value.dtype if value.dtype in WIDE else torch.bfloat16


def merged_weight(patcher: Any, key: str) -> Tensor:
    """In float32, as the host computes it when it loads the MODEL, and as it was before that."""
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    if key in patcher.backup:  # loaded: the weight in its place has a LoRA in it, maybe that of another MODEL
        weight = patcher.backup[key].weight
    weight = management.cast_to_device(weight, weight.device, torch.float32, copy=True)
    if convert is not None:
        weight = convert(weight, inplace=True)
    return comfy.lora.calculate_weight(patcher.patches.get(key, []), weight, key).detach().cpu()
