"""What one sampling run computes once: prepared conditions, and each step's modulation.

Keys are object identities: comparing the values of tensors would synchronise with the GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


class StepMemo:
    """Values of the latest step. They go when another tensor stands for the step, or when this one goes."""

    def __init__(self) -> None:
        self._step: weakref.ref[Tensor] | None = None
        self._kept: dict[Hashable, Any] = {}

    def once(self, step: Tensor, key: Hashable, compute: Callable[[], T]) -> T:
        if self._step is None or self._step() is not step:
            self._kept = {}
            self._step = weakref.ref(step, self._forget)
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def _forget(self, step: weakref.ref[Tensor]) -> None:
        if step is self._step:
            self._step, self._kept = None, {}


class RunMemo:
    """What one run repeats. Whoever starts a run makes one, hands it to each forward, and drops it after."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}
        self._steps = StepMemo()

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value of `key`, computed the first time in this run."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def time(self, timesteps: Tensor, key: Hashable, compute: Callable[[], T]) -> T:
        """The same for the latest `timesteps` only, which all conditionings of a step share."""
        return self._steps.once(timesteps, key, compute)
