"""What every network of ours needs in the host: its patcher, and fp8 layers as this host takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch

from ....zimage_core.weights import Checkpoint


def patched(
    model: torch.nn.Module, load: Callable[..., Any], settings: tuple, disable_dynamic: bool = False
) -> Any:
    """`model` in whatever patcher class the host uses now; load(*settings) would make it again."""
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:  # looked up now: the host rebinds it when dynamic VRAM starts
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    patcher = patcher_class(
        model,
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
    )
    patcher.cached_patcher_init = (load, settings)
    return patcher


def quantised_state(config: Any, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """fp8 layers as this host's per-layer quantisation takes them."""
    state = dict(checkpoint.tensors)
    if "layer_quant_config" in vars(comfy.supported_models.supported_models_base.BASE):  # 0.3.72 to 0.3.76
        config.layer_quant_config = checkpoint.formats
    else:
        for layer, spec in checkpoint.formats.items():
            state[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(spec).encode()), dtype=torch.uint8)
        config.quant_config = comfy.utils.detect_layer_quantization(state, "")
    return state
