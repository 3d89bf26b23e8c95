"""Batches of requests as a task of a Ray cluster, whose workers each hold the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from ..cluster import LOSSES, installed
from .batches import Batch
from .worker import Drawn, Job, Worker

Numbered = tuple[int, Batch]


@dataclass(frozen=True)
class Drawing:
    """A numbered batch -> its pictures."""

    job: Job
    silence: ClassVar[float] = 2 * 60 * 60.0

    def versions(self) -> dict[str, str]:
        return {**installed("torch", "Pillow"), "the model's files": self.job.model}

    def begin(self, device: str) -> Callable[[Numbered], Drawn]:
        try:
            worker = Worker(replace(self.job, device=device))
        except torch.OutOfMemoryError as error:
            raise RuntimeError(f"its GPU is too small, give --vram: {error}") from None
        return lambda item: worker.draw(item[1])

    def parts(self, item: Numbered) -> Sequence[Numbered]:
        """None: in another batch a picture would differ."""
        return ()

    def given_up(self, item: Numbered, why: str) -> Drawn:
        return Drawn(again=f"{LOSSES} workers were lost while they drew it: {why}")
