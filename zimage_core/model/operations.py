"""Layers that compute in the type of their input: weights of another type are converted as they run.

Where the types are one, they are torch's own layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVERTED = 4 << 20  # bytes of a weight that are converted at once: they stay in a CPU's caches
Embedding = nn.Embedding  # has no input whose type it could follow


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., K] @ weight [N, K] + bias in x's type."""
    if weight.dtype == x.dtype:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and weight.requires_grad:  # the way back would copy `out` for each part
        return F.linear(x, weight.to(x.dtype), _as(x, bias))
    rows = max(1, CONVERTED // (weight.shape[1] * x.element_size()))
    out = x.new_empty(*x.shape[:-1], len(weight))
    for start in range(0, len(weight), rows):
        part = slice(start, start + rows)
        out[..., part] = F.linear(x, weight[part].to(x.dtype), _as(x, None if bias is None else bias[part]))
    return out


def _as(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is None else parameter.to(x.dtype)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, _as(x, self.weight), _as(x, self.bias))


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, _as(x, self.weight), self.eps)


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, _as(x, self.weight), _as(x, self.bias), self.eps)


class GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, _as(x, self.weight), _as(x, self.bias), self.eps)


FOLLOWING = {nn.Linear: Linear, nn.LayerNorm: LayerNorm, nn.Conv2d: Conv2d}


def follow_inputs(network: nn.Module) -> nn.Module:
    """Makes the layers of a network that others wrote compute in the types of their inputs, too."""
    for module in network.modules():
        module.__class__ = FOLLOWING.get(type(module), type(module))
    return network
