"""The operators that a forward really calls, with the FLOPs and bytes of each.

On any device: on the meta device for networks of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

PRODUCT, ATTENTION, OTHER = "matrix products", "attention", "everything else"
# Attention kernels by their operators, and by their numbers in torch's order of preference.
KERNELS = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_efficient_attention": "efficient",
}
NUMBERED = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}
TORCH_CHOOSES = "torch chooses"
# Beside what the schema calls a view: these touch no data either.
FREE = set(
    "detach alias lift_fresh _unsafe_view _reshape_alias empty empty_like empty_strided new_empty "
    "new_empty_strided".split()
)
OVERWRITTEN = {"copy_", "fill_", "zero_"}  # their first argument is not read


class Operator(NamedTuple):
    """One call."""

    name: str
    kind: str  # PRODUCT, ATTENTION or OTHER
    by: str  # what its rate depends on: a product's dtype, attention's kernel
    flops: int
    read: int  # bytes of its arguments
    written: int  # bytes of its results, and of arguments that it changes


class Operators(TorchDispatchMode):
    """Lists every operator that touches data while it is active.

    An operator that torch.library knows from somewhere else counts as one too. It is a matrix product when it
    has a formula in torch.utils.flop_counter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Operator] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view and func.overloadpacket.__name__ not in FREE:
            self.calls.append(described(func, args, kwargs, out))
        return out


class OneKernel(TorchFunctionMode):
    """Norms and attention as cards run them, one kernel each.

    On the meta device torch would take them apart. To be entered before `operators`, which gets them. Torch's
    own kernels for norms copy what is not contiguous before they read it: heads of q and k, for instance.
    """

    def __init__(self, operators: Operators) -> None:
        super().__init__()
        self.calls = operators.calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **kwargs)
        if func in (F.rms_norm, torch.rms_norm):
            return self.norm(func, *args, **kwargs)
        if func is F.layer_norm:
            return func(args[0].contiguous(), *args[1:], **kwargs)
        return func(*args, **kwargs)

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Queries [B, H, S, D] -> the same shape and layout, as flash and cuDNN kernels return it."""
        out = torch.empty_like(query)
        flops = sdpa_flop_count(query.shape, key.shape, value.shape)
        read = bytes_of(t for t in (query, key, value, attn_mask) if t is not None)
        kernel = chosen_kernel(query.dtype, attn_mask is not None)
        name = "scaled_dot_product_attention"
        self.calls.append(Operator(name, ATTENTION, kernel, flops, read, bytes_of([out])))
        return out

    def norm(
        self, func: Callable, input: Tensor, shape: Any, weight: Tensor | None = None, eps: Any = None
    ) -> Tensor:
        if weight is not None and weight.dtype != input.dtype:  # torch has no such kernel
            return func(input, shape, weight, eps)
        input = input.contiguous()
        out = torch.empty_like(input)
        read = bytes_of(t for t in (input, weight) if t is not None)
        self.calls.append(Operator("rms_norm", OTHER, "", 0, read, bytes_of([out])))
        return out


def called_by(call: Callable[[], Any]) -> list[Operator]:
    """What one call runs on a card, if its tensors are on the meta device."""
    operators = Operators()
    with torch.no_grad(), OneKernel(operators), operators:
        call()
    return operators.calls


def described(func: Any, args: tuple, kwargs: dict, out: Any) -> Operator:
    name, schema = func.overloadpacket.__name__, func._schema
    named = [*zip(schema.arguments, args, strict=False)]
    named += [(argument, kwargs[argument.name]) for argument in schema.arguments if argument.name in kwargs]
    changed = [value for argument, value in named if argument.alias_info and argument.alias_info.is_write]
    not_read = changed[:1] if name in OVERWRITTEN else []
    not_read += [value for argument, value in named if argument.is_out]
    read = bytes_of(tensors([value for _, value in named])) - bytes_of(tensors(not_read))
    results = out if isinstance(out, tuple | list) else (out,)
    made = [value for result, value in zip(schema.returns, results, strict=False) if not result.alias_info]
    written = bytes_of(tensors(made)) + bytes_of(tensors(changed))
    formula = flop_registry.get(func.overloadpacket)
    flops = formula(*args, **kwargs, out_val=out) if formula else 0
    if name in KERNELS:
        return Operator(name, ATTENTION, KERNELS[name], flops, read, written)
    if formula:
        dtype = str(next(iter(tensors(args))).dtype).removeprefix("torch.")
        return Operator(name, PRODUCT, dtype, flops, read, written)
    return Operator(name, OTHER, "", 0, read, written)


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_iter(values) if isinstance(value, Tensor)]


def bytes_of(parts: Iterable[Tensor]) -> int:
    """What reading or writing these moves: an expanded dimension is there once."""
    return sum(
        math.prod(size for size, stride in zip(t.shape, t.stride(), strict=True) if stride) * t.element_size()
        for t in parts
    )


def chosen_kernel(dtype: torch.dtype, masked: bool) -> str:
    """The first of the kernels allowed now that takes such tensors, or that the choice is left to torch."""
    cuda = torch.backends.cuda
    allowed = {
        "math": cuda.math_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }
    order = torch._C._get_sdp_priority_order()
    if order == OWN_ORDER and all(allowed.values()):
        return TORCH_CHOOSES
    half = dtype in (torch.bfloat16, torch.float16)
    takes = {"math": True, "flash": half and not masked, "efficient": True, "cudnn": half}
    kernels = [NUMBERED[number] for number in order if number in NUMBERED]
    return next(kernel for kernel in kernels if allowed[kernel] and takes[kernel])


OWN_ORDER = torch._C._get_sdp_priority_order()
