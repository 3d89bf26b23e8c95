"""What every network of ours needs in the host: its patcher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import comfy.model_patcher
import torch

from .mapped import on_disk


def patched(
    model: torch.nn.Module,
    load: Callable[..., Any] | None,
    settings: tuple = (),
    disable_dynamic: bool = False,
) -> Any:
    """`model` in whatever patcher class the host uses now; load(*settings) would make it again, if anything.

    settings: the path of the file or folder first.
    """
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:  # looked up now: the host rebinds it when dynamic VRAM starts
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    patcher = patcher_class(
        model,
        load_device=management.get_torch_device(),
        offload_device=management.unet_offload_device(),
        **(on_disk(patcher_class, settings[0]) if load else {}),
    )
    if load:
        patcher.cached_patcher_init = (load, settings)
    return patcher
