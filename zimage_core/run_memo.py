"""What one sampling run computes once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


class RunMemo:
    """Values that depend on a prompt, a size or a timestep only: refined captions, rope tables, modulation.

    One is made per conditioning and run by whoever starts the run, handed to each forward, and dropped with the run, so
    nothing outlives it and nothing is looked up by content (which would wait for the GPU).
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, object] = {}
        self._timesteps: Tensor | None = None
        self._modulation: object = None

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]  # type: ignore[return-value]

    def per_timestep(self, timesteps: Tensor, key: Hashable, compute: Callable[[], T]) -> T:
        """As `once`, but only the latest timestep tensor is kept: a schedule passes each of its values once."""
        if self._timesteps is not timesteps or self._modulation is None or self._modulation[0] != key:
            self._timesteps, self._modulation = timesteps, (key, compute())
        return self._modulation[1]
