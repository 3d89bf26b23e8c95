"""What a CUDA graph does, on a processor: operators recorded once, then repeated on the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Every operator that is called while it is active, with the very tensors that it read and made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero"):
            raise RuntimeError(f"{func} waits for the card while a graph is recorded")
        if not func.is_view:
            self.calls.append((func, args, kwargs, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(leaves(out), leaves(again), strict=True):
                if old is not new and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def leaves(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def capture(run: Callable[[], Tensor]) -> tuple[Recorder, Tensor]:
    """In place of CudaCapture. Numbers of the recording itself are worth nothing, as on a card."""
    recorder = Recorder()
    with recorder:
        out = run()
    with torch.no_grad():
        for _, args, kwargs, made in recorder.calls:
            for tensor in leaves(made):
                if (
                    not any(tensor is given for given in leaves((args, kwargs)))
                    and tensor.is_floating_point()
                ):
                    tensor.fill_(float("nan"))
    return recorder, out
