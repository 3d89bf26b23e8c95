"""What one sampling run computes once: refined captions, rope tables, and each timestep's modulation.

Whoever starts a run makes these objects and hands them to each forward; they go with the run. Keys are the
objects
themselves, never tensor contents, which would wait for the GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class TimestepMemo:
    """The latest timestep's modulation, shared by all conditionings of a run; it goes when the timestep
    tensor does.
    """

    def __init__(self) -> None:
        self._timestep: weakref.ref[Tensor] | None = None
        self._key: Hashable = None
        self._value: Any = None

    def once(self, timestep: Tensor, key: Hashable, compute: Callable[[], T]) -> T:
        if self._timestep is None or self._timestep() is not timestep or self._key != key:
            self._value, self._key = compute(), key
            self._timestep = weakref.ref(timestep, self._forget)
        return self._value

    def _forget(self, timestep: weakref.ref[Tensor]) -> None:
        if timestep is self._timestep:
            self._timestep = self._key = self._value = None


class RunMemo:
    """Values that depend on one conditioning and the picture's size, made once per conditioning and run."""

    def __init__(self, timestep: TimestepMemo | None = None) -> None:
        self.timestep = timestep or TimestepMemo()
        self._kept: dict[Hashable, Any] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]
