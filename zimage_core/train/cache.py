"""Latents and caption features on the disk, so that encoders work once for each picture and text.

A name is made of content and settings: another picture, size or encoder gets another one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def digest(*parts: bytes | str) -> str:
    """A name for content and settings together."""
    found = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        found.update(len(raw).to_bytes(8, "little") + raw)
    return found.hexdigest()[:40]


class Cache:
    """A folder with a file for each tensor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of this name, made where it is not there or cannot be read."""
        path = self.folder / name[:2] / f"{name}.safetensors"
        if path.is_file():
            try:
                return load_file(path)["value"]
            except (SafetensorError, OSError, KeyError):
                path.unlink(missing_ok=True)
        value = make().detach().cpu().contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        try:
            save_file({"value": value}, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return value
