"""The name that a new loader has chosen: a full-size Z-Image where there is one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ....zimage_core.config import AutoencoderConfig, Qwen3Config, S3DiTConfig, VisionConfig
from ....zimage_core.weights import READERS, WeightsError, parts_of

OFFICIAL = {  # the names that the files are published under for ComfyUI, the first that is there is taken
    "transformer": ("z_image_turbo_bf16.safetensors", "z_image_bf16.safetensors"),
    "text_encoder": ("qwen_3_4b.safetensors",),
    "autoencoder": ("ae.safetensors",),
}
FULL_SIZE: dict[str, Callable] = {  # of a file's configuration
    "transformer": lambda config: config.full_size,
    "text_encoder": lambda config: config == Qwen3Config(),
    "autoencoder": lambda config: config == AutoencoderConfig(),
    "vision": lambda config: config == VisionConfig(),
    "control": lambda config: config.blocks.dim == S3DiTConfig.dim,
}


def first_choice(kind: str, names: Iterable[str], path_of: Callable[[str], Path | None]) -> str | None:
    """An official name in any folder, else the first name of a file or folder that is full-size, or None.

    path_of is only asked where there is no official name: headers are read then, once for each file.
    """
    names = list(names)
    for official in OFFICIAL.get(kind, ()):
        for name in names:
            if name.replace("\\", "/").rpartition("/")[2] == official:
                return name
    return next((name for name in names if (path := path_of(name)) and _is_full_size(kind, path)), None)


def _is_full_size(kind: str, path: Path) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return _file_is_full_size(kind, path, status.st_mtime_ns, status.st_size)


@functools.cache
def _file_is_full_size(kind: str, path: Path, changed: int, size: int) -> bool:
    if path.is_file() and kind not in parts_of(path):
        return False
    try:
        return FULL_SIZE[kind](READERS[kind](path, values=False).config)
    except (WeightsError, OSError):
        return False
