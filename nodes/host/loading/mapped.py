"""Files as the host maps them: each tensor knows its place in the file, from where the host can stream it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy
import comfy.utils

from ....zimage_core.weights.files import RawFile, is_gguf, read_tensors, shards

try:
    import comfy.storage as storage
except ImportError:  # an older host
    storage = None


def mapped(path: Path) -> Path | RawFile:
    """What our readers take: the file as the host opens it where it streams from disk, else the path.

    Raises WeightsError as our own readers do, before the host opens anything.
    """
    streams = getattr(getattr(comfy, "memory_management", None), "aimdo_enabled", False)
    if not streams or (path.is_file() and is_gguf(path)):
        return path
    raw = read_tensors(path, values=False)
    for part in shards(path) if path.is_dir() else [path]:
        try:
            raw.tensors |= comfy.utils.load_torch_file(str(part))
        except KeyError:  # a type of numbers that the host does not have
            return path
    return raw


def on_disk(patcher_class: Callable[..., Any], path: Path) -> dict[str, bool]:
    """Whether the host may read weights from this disk again rather than keep them, for hosts that ask."""
    if storage is None or "fast_disk" not in inspect.signature(patcher_class).parameters:
        return {}
    parts = shards(path) if path.is_dir() else [path]
    return {"fast_disk": storage.model_fast_disk([str(part) for part in parts])}
