"""Several processes that train as one, started by torchrun: each takes its part of every batch.

What all hold whole, such as a LoRA, has its gradients added up. A model that trains itself is sharded: each
process holds its part of every matrix, and of the optimiser's moments (FSDP2). Their folders are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..acceleration.sharding import shard

TIMEOUT = timedelta(minutes=20)  # after which a process gives up that waits for one that failed
BACKENDS = {"cuda": "cpu:gloo,cuda:nccl", "cpu": "gloo"}


class Stopped(KeyboardInterrupt):
    """All processes end after the same step, since one was asked to."""


class Processes:
    """Who trains together.

    rank: of this process; size: how many there are. shards: whether states of sharded runs are read, too,
    which unpickles. asked: set by a signal; all stop when the step is done.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, device: torch.device | str = "cpu", shards: bool = False
    ) -> None:
        self.rank, self.size, self.device, self.shards = rank, size, torch.device(device), shards
        self.sharded = self.asked = False

    @property
    def first(self) -> bool:
        """Whether this one writes what all have in common: LoRA states, the log, samples, the result."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Which of so many samples are this process's."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, the same for each."""
        if self.size == 1:
            return list(values)
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found)
        return found.tolist()

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Each gradient becomes the sum of all processes' gradients."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.sharded:  # FSDP2 gave their mean
            torch._foreach_mul_(gradients, self.size)
            return
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def shard(self, model: nn.Module, computes: torch.dtype) -> None:
        """Each process keeps its part of an S3DiT's parameters, which come together block by block.

        computes: the type of the products; gradients are added up in float32.
        """
        if self.size == 1:
            return
        shard(model, self.device.type, computes)
        self.sharded = True


def whole(tensor: Tensor) -> Tensor:
    """Of a sharded tensor all parts, on every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


ALONE = Processes()


def join(device: str) -> Processes:
    """For the command line: the processes that torchrun started; each takes a card of its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Processes(device=device, shards=True)
    found = torch.device(device)
    if found.type == "cuda":
        found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(found)
    dist.init_process_group(BACKENDS.get(found.type, "gloo"), timeout=TIMEOUT)
    return Processes(dist.get_rank(), size, found, shards=True)


def leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
