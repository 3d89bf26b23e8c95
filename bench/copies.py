"""Which weights are copied, in which order, counted below the code that asks for it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class CopiedWeights(TorchDispatchMode):
    """Copies that read a model's parameters: their names in order, and bytes. Views and fakes count too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {p.untyped_storage()._cdata: name for name, p in model.named_parameters()}
        self.held = [p.data for p in model.parameters()]  # storages must not be made anew meanwhile
        self.copied: list[str] = []
        self.bytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.copy_.default:
            name = self.names.get(args[1].untyped_storage()._cdata)
            if name is not None:
                self.copied.append(name)
                self.bytes += args[1].nbytes
        return operator(*args, **(kwargs or {}))

    def blocks(self) -> list[str]:
        """Each block once for each time that its first matrix was copied."""
        first = ".attention.qkv.weight"
        return [name.removesuffix(first) for name in self.copied if name.endswith(first)]
