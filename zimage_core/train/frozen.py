"""An S3DiT whose layers stay as they are stored, in bf16, fp8, int8 or blocks of ggml, under gradients.

Gradients pass through a layer and none are made of it: nothing of its weights is kept for the way back, so
that they may be quantised, streamed, or lie in memory that the autograd of torch refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..model import operations
from ..model.arithmetic import compute_dtype
from ..model.s3dit import S3DiT
from ..weights.checkpoint import Checkpoint
from ..weights.layouts import matrix_of, parts_of, shape_of


class Frozen(nn.Module):
    """A linear layer that does not train."""

    in_features: int
    out_features: int

    def product(self, x: Tensor) -> Tensor:
        """x [.., in_features] -> [.., out_features]; called without gradients."""
        raise NotImplementedError

    def matrix(self, like: Tensor) -> Tensor:
        """The weight [out_features, in_features] in the type and on the device of a tensor."""
        raise NotImplementedError

    def back(self, gradient: Tensor) -> Tensor:
        """What comes back to x from the gradient of its product."""
        return gradient @ self.matrix(gradient)

    def forward(self, x: Tensor) -> Tensor:
        return _Through.apply(x, self)


class _Through(torch.autograd.Function):
    """Passes gradients through a layer, whose matrix is made again for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Frozen) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.back(gradient), None


class Stored(Frozen):
    """A layer of a file. parts: weight and its companions as they lie there; spec: how they are quantised."""

    def __init__(self, parts: dict[str, Tensor], spec: dict | None, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = shape_of(parts["weight"], spec)
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part, requires_grad=False))
        self.names, self.spec = tuple(parts), spec
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def parts(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self.names}

    def matrix(self, like: Tensor) -> Tensor:
        if self.spec is None:
            return self.weight.to(like.dtype)
        return matrix_of(self.parts, self.spec, like.dtype)

    def product(self, x: Tensor) -> Tensor:
        if self.spec is None:
            return operations.linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.matrix(x), bias)


def frozen(
    config: Any, dtype: torch.dtype, layer: Callable[[str], Frozen], small: Callable[[str], Tensor]
) -> S3DiT:
    """An S3DiT of layers that others hold.

    layer: of a linear layer's path; small: of every other parameter's name, such as a norm's weight.
    dtype: what is computed in.
    """
    model = S3DiT(config, device="meta", dtype=dtype)
    for path, module in [*model.named_modules()]:
        if isinstance(module, nn.Linear):
            model.set_submodule(path, layer(path))
    held = {id(p) for module in model.modules() if isinstance(module, Frozen) for p in module.parameters()}
    for name, p in [*model.named_parameters()]:
        if id(p) not in held:
            owner, _, last = name.rpartition(".")
            value = small(name).to(dtype).clone()  # a plain tensor, whatever memory it was in
            setattr(model.get_submodule(owner), last, nn.Parameter(value, requires_grad=False))
    return model.eval()


def from_checkpoint(
    checkpoint: Checkpoint, device: torch.device | str = "cpu", computes: torch.dtype | None = None
) -> S3DiT:
    """The transformer of a file, its matrices as they are stored there.

    computes: the type of the products, for another device than this.
    """
    tensors, formats, device = checkpoint.tensors, checkpoint.formats, torch.device(device)
    dtype = computes or compute_dtype(checkpoint.dtype, device)

    def layer(path: str) -> Frozen:
        spec = formats.get(path)
        parts = parts_of(tensors, path) if spec else {"weight": tensors[f"{path}.weight"]}
        bias = tensors.get(f"{path}.bias")
        return Stored(
            {name: part.to(device) for name, part in parts.items()},
            spec,
            None if bias is None else bias.to(device),
        )

    return frozen(checkpoint.config, dtype, layer, lambda name: tensors[name].to(device))
