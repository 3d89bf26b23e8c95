"""A part that some node still holds is not read a second time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Weak: a part lives as long as the host keeps the output of a node that gave it, and no longer.
_parts: weakref.WeakValueDictionary[tuple, Any] = weakref.WeakValueDictionary()


def held(load: Callable[..., Any], path: Path, *settings: Any) -> Any | None:
    """What load(path, *settings) made of the same file before, if it is still in use."""
    return _parts.get(_key(load, path, settings))


def loaded(load: Callable[..., Any], path: Path, *settings: Any) -> Any:
    """What load(path, *settings) makes, or made before."""
    part = held(load, path, *settings)
    if part is None:
        part = _parts[_key(load, path, settings)] = load(path, *settings)
    return part


def _key(load: Callable[..., Any], path: Path, settings: tuple) -> tuple:
    found = path.stat()
    return load, path, found.st_mtime_ns, found.st_size, *settings
