"""Threads of a CPU that share each batch of a small model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from ...model.arithmetic import compute_dtype


class Shards:
    """Copies of a float32 model that share each batch, one thread each.

    They are in bf16 unless told otherwise, or in float32 where a CPU has no arithmetic of bf16.

    Two threads that meet once per step lose less on a busy machine than two threads inside every operation.
    """

    def __init__(self, model: nn.Module, count: int, dtype: torch.dtype = torch.bfloat16):
        self.model = model
        dtype = compute_dtype(dtype, next(model.parameters()).device)
        self.copies = [copy.deepcopy(model).to(dtype) for _ in range(count)]
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, losses: Sequence[Callable[[nn.Module], Tensor]]) -> float:
        """Run one loss per copy on the model's present weights; returns the mean loss.

        The model gets the mean gradient.
        """

        def run(part: tuple[nn.Module, Callable[[nn.Module], Tensor]]) -> float:
            shard, loss = part
            with torch.no_grad():
                for fast, exact in zip(shard.parameters(), self.model.parameters(), strict=True):
                    fast.copy_(exact)
                    fast.grad = None
            value = loss(shard) / len(losses)
            value.backward()
            return value.item()

        parts = list(zip(self.copies, losses, strict=True))
        values = list(self.pool.map(run, parts)) if len(parts) > 1 else [run(parts[0])]
        for exact, *fast in zip(self.model.parameters(), *(s.parameters() for s in self.copies), strict=True):
            exact.grad = sum(p.grad.float() for p in fast) if fast[0].grad is not None else None
        return sum(values)
