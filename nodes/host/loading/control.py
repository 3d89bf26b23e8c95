"""A Z-Image-Fun-Controlnet file -> a control network in the host's patcher."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.ops

from ....zimage_core.weights import read_control
from ..built_in import NANO
from ..running.control import HostControlNet
from ..running.packed import pack
from .mapped import mapped
from .model import Config
from .patcher import patched
from .quantised import Placed, quantised_state


def load_control(path: Path, disable_dynamic: bool = False) -> Any:
    """A control network in the host's patcher. Raises WeightsError for files that are none."""
    checkpoint = read_control(mapped(path))
    logging.info("Z-Image ControlNet: %s", checkpoint.summary)
    state, operations, kept = checkpoint.tensors, comfy.ops.manual_cast, Placed({}, {})
    if checkpoint.formats and path.parent == NANO:  # fp8 saves nothing worth having in a small one
        state = checkpoint.plain()
    elif checkpoint.formats:
        load_device = management.get_torch_device()
        config = Config({"image_model": "lumina2"})
        state, kept = quantised_state(config, checkpoint)
        if kept.host:
            compute = management.unet_manual_cast(None, load_device, list(config.supported_inference_dtypes))
            operations = comfy.ops.pick_operations(
                None, compute, load_device=load_device, model_config=config
            )
    network = HostControlNet(
        checkpoint.config, management.unet_offload_device(), checkpoint.dtype, operations
    )
    pack(network, kept.packed, management.unet_offload_device())
    patcher = patched(network.eval(), load_control, (path,), disable_dynamic)
    network.load_state_dict(state, assign=True)  # each tensor in the file's own type
    return patcher
