"""The network of a host's MODEL under gradients: its layers stay the host's own and do not train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as management
import comfy.ops
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ....zimage_core.model.s3dit import S3DiT
from ....zimage_core.train.frozen import Frozen, frozen
from ..running.merged import PREFIX, merged_weight, readable
from ..running.packed import PackedLinear


class HostLayer(Frozen):
    """A linear layer that the host holds, wherever and as whatever its weights lie."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.__dict__["layer"] = layer  # no part of this network, which would move and count it

    def product(self, x: Tensor) -> Tensor:
        if isinstance(self.layer.weight, QuantizedTensor):  # which the host may multiply as it is
            return self.layer(x.detach())
        with held(self.layer, x) as (weight, bias):
            return F.linear(x, weight, bias)

    def back(self, gradient: Tensor) -> Tensor:
        with held(self.layer, gradient) as (weight, _):
            return gradient @ weight


@contextmanager
def held(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Weight [out, in] and bias with all that is on them, in the type and on the device of a tensor.

    The host may use their memory again behind it.
    """
    packed = isinstance(layer, PackedLinear)
    dtype = layer.weight.dtype if packed else like.dtype
    stored, bias, stream = comfy.ops.cast_bias_weight(
        layer, dtype=dtype, device=like.device, bias_dtype=like.dtype, offloadable=True
    )
    try:
        if packed:
            yield layer.changed(layer.matrix(stored, like.dtype)), bias
        else:  # an older host hands quantised ones on where the type is that of their matrices
            plain = stored.dequantize() if isinstance(stored, QuantizedTensor) else stored
            yield plain.to(like.dtype), bias
    finally:
        comfy.ops.uncast_bias_weight(layer, stored, bias, stream)


def trainable(patcher: Any) -> S3DiT:
    """A network of a Z-Image MODEL's own layers, beside that which the host runs; small weights are copied.

    Raises NotZImage for others, and for a MODEL whose weights do not say all that it computes.
    """
    network = readable(patcher)

    def small(name: str) -> Tensor:
        return merged_weight(patcher, PREFIX + name).to(patcher.load_device)

    return frozen(
        network.config, computed_in(patcher), lambda path: HostLayer(network.get_submodule(path)), small
    )


def computed_in(patcher: Any) -> torch.dtype:
    """As the host would, but not in float16, where small gradients become nothing."""
    dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
    if dtype != torch.float16:
        return dtype
    return torch.bfloat16 if management.should_use_bf16(patcher.load_device) else torch.float32
