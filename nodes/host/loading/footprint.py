"""What is loaded, how many GB it takes, and whether the machine has these free."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import comfy.model_management as management
import torch

from ....zimage_core.weights import Checkpoint
from ..built_in import NANO, vocabulary
from .model import DTYPES
from .quantised import placed

GB, MB = 10**9, 10**6
NAMES = {"text_encoder": "text", "autoencoder": "VAE"}  # a transformer is called by its model


def gigabytes(count: int) -> str:
    """12.3 GB, or MB where tenths of a GB would say nothing."""
    return f"{count / GB:.1f} GB" if count >= 0.05 * GB else f"{count / MB:.0f} MB"


def in_memory(checkpoint: Checkpoint, weight_dtype: str = "auto") -> int:
    """Bytes of its weights where they are kept in weight_dtype, one of DTYPES."""
    dtype = DTYPES.get(weight_dtype)
    if dtype is not None:
        return checkpoint.parameters * dtype.itemsize
    kept = placed(checkpoint)
    others = checkpoint.formats.keys() - kept.host.keys() - kept.packed.keys()
    wider = sum(checkpoint.bytes_in(layer, torch.bfloat16) - checkpoint.bytes_in(layer) for layer in others)
    return checkpoint.bytes + wider


def summary(parts: Mapping[str, tuple[Checkpoint, Path]], weight_dtype: str) -> str:
    """One line for three parts and their paths by kind: Turbo bf16 12.3 GB + text 8.0 GB + VAE 0.3 GB."""
    transformer, path = parts["transformer"]
    precision = transformer.precision if DTYPES.get(weight_dtype) is None else weight_dtype
    built_in = path.parent == NANO
    name = transformer.variant if transformer.config.full_size else transformer.name
    model = "nano" if built_in else f"{name} {precision}"
    sizes = [f"{model} {gigabytes(in_memory(transformer, weight_dtype))}"]
    sizes += [f"{NAMES[kind]} {gigabytes(in_memory(parts[kind][0]))}" for kind in NAMES]
    about = f": {about_nano()}" if built_in else ""
    return " + ".join(sizes) + about


def about_nano() -> str:
    known = len(vocabulary().things)
    return f"the demo model draws {known} things at 128x128, models/nano/README.md lists them"


def memory_note(needed: int) -> list[str]:
    """A sentence where this many bytes are not free in the card's memory and the machine's together."""
    card, machine = management.get_torch_device(), torch.device("cpu")
    free = {device.type: management.get_free_memory(device) for device in (card, machine)}
    if needed <= sum(free.values()):
        return []
    places = " and ".join(
        f"{gigabytes(count)} of {'RAM' if kind == 'cpu' else 'VRAM'}" for kind, count in free.items()
    )
    return [
        f"{gigabytes(needed)} to load, but only {places} free: it may fail or be very slow. Close other "
        "programs, or choose an fp8 file or weight_dtype fp8_e4m3fn."
    ]
