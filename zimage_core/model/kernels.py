"""Steps of a block as single kernels, in Triton: each tensor is read and written once.

Sums, products and rotations are float32, rounded once, into the type of the tokens. Importing this needs
triton; `fused` decides where it is used. Each kernel is an operator of torch.library with a fake
implementation, so that the meta device, torch.compile and counters see one operator.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

# The host loads this package under a name of its own; both copies may be in one process.
NAMESPACE = re.sub(r"\W+", "_", __name__)
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
ELEMENTS = 1024  # of a flat tensor, for each program


@triton.jit
def _normed(x, weight, factor, row, at, width, tokens, per_sample, eps):
    """Row `row` of x, normed and times its sample's factor."""
    inside = at < width
    value = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    value *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    return value * tl.load(factor + row // tokens * per_sample + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _norm_scale(x, weight, factor, out, width, tokens, per_sample, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = _normed(x, weight, factor, row, at, width, tokens, per_sample, eps)
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=at < width)


@triton.jit
def _norm_gate_add(x, y, weight, gate, out, width, tokens, per_sample, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = _normed(y, weight, gate, row, at, width, tokens, per_sample, eps)
    value += tl.load(x + row * width + at, mask=at < width, other=0.0).to(tl.float32)
    tl.store(out + row * width + at, value.to(out.dtype.element_ty), mask=at < width)


@triton.jit
def _turn(x, weight, m00, m01, m10, m11, heads, stride_head, eps, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Heads of one token, [heads, WIDTH] from x on: normed and turned in their place."""
    head = tl.arange(0, BLOCK)[:, None]
    at = tl.arange(0, WIDTH)
    inside = (head < heads) & (at[None, :] < WIDTH)
    place = x + head * stride_head + at[None, :]
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, axis=1) / WIDTH + eps)[:, None]
    value *= tl.load(weight + at).to(tl.float32)[None, :]
    first, second = tl.split(tl.reshape(value, (BLOCK, WIDTH // 2, 2)))
    turned = tl.interleave(
        m00[None, :] * first + m01[None, :] * second, m10[None, :] * first + m11[None, :] * second
    )
    tl.store(place, turned.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _norm_rotate(
    q, k, q_weight, k_weight, table, tokens, q_heads, k_heads,
    q_sample, q_token, q_head, k_sample, k_token, k_head, table_sample, table_token, eps,
    Q_BLOCK: tl.constexpr, K_BLOCK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    sample, token = row // tokens, row % tokens
    matrix = table + sample * table_sample + token * table_token + 4 * tl.arange(0, WIDTH // 2)
    m00, m01 = tl.load(matrix), tl.load(matrix + 1)
    m10, m11 = tl.load(matrix + 2), tl.load(matrix + 3)
    q += sample * q_sample + token * q_token
    k += sample * k_sample + token * k_token
    _turn(q, q_weight, m00, m01, m10, m11, q_heads, q_head, eps, Q_BLOCK, WIDTH)
    _turn(k, k_weight, m00, m01, m10, m11, k_heads, k_head, eps, K_BLOCK, WIDTH)


@triton.jit
def _swiglu(a, b, out, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    gate = tl.load(a + at, mask=inside, other=0.0).to(tl.float32)
    value = gate * tl.sigmoid(gate) * tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


def operator(schema: str, fake: Callable[..., Tensor | None]) -> Callable[[Callable], Callable]:
    """Makes the function below it an operator of torch.library."""

    def define(run: Callable) -> Callable:
        name = schema.split("(")[0]
        LIBRARY.define(schema)
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return define


def by_row(x: Tensor, factor: Tensor) -> tuple[int, int, int]:
    """Of tokens x [B, S, D] and factor [1 or B, 1, D]: D, S, and from one sample's factor to the next."""
    return x.shape[-1], x.shape[1], factor.stride(0) if factor.shape[0] > 1 else 0


@operator(
    "norm_scale(Tensor x, Tensor weight, Tensor factor, float eps) -> Tensor",
    lambda x, weight, factor, eps: torch.empty_like(x, memory_format=torch.contiguous_format),
)
def norm_scale(x: Tensor, weight: Tensor, factor: Tensor, eps: float) -> Tensor:
    """RMS norm of x [B, S, D] with weight [D], times factor [1 or B, 1, D]."""
    x = x.contiguous()
    out, sizes = torch.empty_like(x), by_row(x, factor)
    block = triton.next_power_of_2(x.shape[-1])
    _norm_scale[(x.shape[0] * x.shape[1],)](x, weight, factor, out, *sizes, eps, BLOCK=block, num_warps=8)
    return out


@operator(
    "norm_gate_add(Tensor x, Tensor y, Tensor weight, Tensor gate, float eps) -> Tensor",
    lambda x, y, weight, gate, eps: torch.empty_like(x, memory_format=torch.contiguous_format),
)
def norm_gate_add(x: Tensor, y: Tensor, weight: Tensor, gate: Tensor, eps: float) -> Tensor:
    """x [B, S, D] + RMS norm of y [B, S, D] with weight [D], times gate [1 or B, 1, D]."""
    x, y = x.contiguous(), y.contiguous()
    out, sizes = torch.empty_like(x), by_row(x, gate)
    block = triton.next_power_of_2(x.shape[-1])
    grid = (x.shape[0] * x.shape[1],)
    _norm_gate_add[grid](x, y, weight, gate, out, *sizes, eps, BLOCK=block, num_warps=8)
    return out


@operator(
    "norm_rotate(Tensor(a!) q, Tensor(b!) k, Tensor q_weight, Tensor k_weight, Tensor table, float eps)"
    " -> ()",
    lambda q, k, q_weight, k_weight, table, eps: None,
)
def norm_rotate(q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, table: Tensor, eps: float) -> None:
    """RMS norm of each head of q and k, then their rotation, where they lie.

    q, k: [B, S, heads, D], D a power of two and dense; weights: [D]; table: float32
    [1 or B, S, 1, D / 2, 2, 2], its last three dimensions dense.
    """
    batch, tokens, _, width = q.shape
    strides = (
        *q.stride()[:3],
        *k.stride()[:3],
        table.stride(0) if table.shape[0] > 1 else 0,
        table.stride(1),
    )
    blocks = {"Q_BLOCK": triton.next_power_of_2(q.shape[2]), "K_BLOCK": triton.next_power_of_2(k.shape[2])}
    _norm_rotate[(batch * tokens,)](
        q, k, q_weight, k_weight, table, tokens, q.shape[2], k.shape[2], *strides, eps, **blocks, WIDTH=width
    )  # fmt: skip


@operator(
    "swiglu(Tensor a, Tensor b) -> Tensor",
    lambda a, b: torch.empty_like(a, memory_format=torch.contiguous_format),
)
def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) * b, both of one shape."""
    a, b = a.contiguous(), b.contiguous()
    out = torch.empty_like(a)
    _swiglu[(triton.cdiv(a.numel(), ELEMENTS),)](a, b, out, a.numel(), BLOCK=ELEMENTS)
    return out
