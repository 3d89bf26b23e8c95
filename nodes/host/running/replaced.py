"""A module of ours in the place of one of the host's."""

from __future__ import annotations

from typing import Any

from torch import nn


class InPlace(nn.Module):
    """What ours does not have is got from, set on and deleted from the host's module that it is in place of.

    Nodes change a MODEL by object patches, which the host sets and takes back by name in the order in which
    they came. So one that was set while ours was in place may be taken back when it no longer is, or the
    other way round: it must be on the host's module in both cases.
    """

    replaced: nn.Module | None = None

    def replace(self, module: nn.Module) -> None:
        self.__dict__["replaced"] = module  # not as a part of ours

    def _owns(self, name: str) -> bool:
        parts = (self.__dict__, self._parameters, self._buffers, self._modules)
        return self.replaced is None or hasattr(type(self), name) or any(name in part for part in parts)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if self.replaced is None:
                raise
            return getattr(self.replaced, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._owns(name):
            super().__setattr__(name, value)
        else:
            setattr(self.replaced, name, value)

    def __delattr__(self, name: str) -> None:
        if self._owns(name):
            super().__delattr__(name)
        else:
            delattr(self.replaced, name)
