"""Whether the LoRAs on a MODEL fit it: the host leaves out what does not, and says so in its log alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.utils
import torch
from torch import Tensor

from .packed import PackedLinear


def lora_notes(patcher: Any) -> list[str]:
    """A sentence for LoRAs of which nothing fits, and one for parts of other shapes than their weights."""
    notes = []
    if without_effect := sum(_added_nothing(before, after) for before, after in _steps(patcher)):
        notes.append(_without_effect(without_effect))
    shapes = list(_fits(patcher))
    if not all(shapes):
        notes.append(
            f"LoRA: {sum(shapes)} of {len(shapes)} of its parts fit this model, the others are left out. Use "
            "one that was made for this model."
        )
    return notes


def _without_effect(count: int) -> str:
    """Names the files where all those of the graph are meant, which is so with one LoRA."""
    from .lora_names import lora_files  # here: it needs a server

    todo = "Use one that was made for Z-Image."
    if len(files := lora_files()) == count:
        each = [
            f"{name} has no effect: 0 of {'its' if keys is None else keys} keys fit this model"
            for name, keys in files.items()
        ]
        return f"LoRA {'; '.join(each)}. {todo}"
    which = "A LoRA has" if count == 1 else f"{count} LoRAs have"
    return f"{which} no effect: 0 of its keys fit this model. {todo}"


def _steps(patcher: Any) -> Iterator[tuple[Any, Any]]:
    """(before, after) of each clone on the way from the loader; a node that changes a MODEL clones it."""
    while (parent := getattr(patcher, "parent", None)) is not None:
        yield parent, patcher
        patcher = parent


def _added_nothing(before: Any, after: Any) -> bool:
    """Whether patches were put on without one that fits: the host then draws a new id, and no more."""
    return before.patches_uuid != after.patches_uuid and _changes(before) == _changes(after)


def _changes(patcher: Any) -> tuple:
    """How much there is of all that has a part in that id."""
    counted = (patcher.patches, patcher.hook_patches, getattr(patcher, "weight_wrapper_patches", {}))
    return patcher.object_patches.keys(), *(sum(map(len, patches.values())) for patches in counted)


def _fits(patcher: Any) -> Iterator[bool]:
    """Of each patch of a weight, whether it has the weight's shape."""
    for key, patches in patcher.patches.items():
        weight = comfy.utils.get_attr(patcher.model, key)  # a state dict has packed ones as they are stored
        layer = comfy.utils.get_attr(patcher.model, key.rpartition(".")[0])
        for _, patch, _, offset, _ in patches:
            shape = list(layer.matrix_shape if isinstance(layer, PackedLinear) else weight.shape)
            if offset is not None:
                shape[offset[0]] = offset[2]
            yield _has_shape(patch, torch.Size(shape))


def _has_shape(patch: Any, shape: torch.Size) -> bool:
    """Of LoRAs and differences; other kinds are taken as fitting."""
    if getattr(patch, "name", None) == "lora":
        up, down, _, middle, *rest = patch.weights
        if middle is not None or any(isinstance(size, (list, tuple)) for size in rest):  # it brings a shape
            return True
        if min(up.ndim, down.ndim) < 1 or 0 in (up.numel(), down.numel()):
            return False
        return up[0].numel() == len(down) and len(up) * down[0].numel() == shape.numel()
    if isinstance(patch, tuple) and patch[0] == "diff":
        value, *padded = patch[1]
        return bool(padded) or not isinstance(value, Tensor) or value.shape == shape
    return True
