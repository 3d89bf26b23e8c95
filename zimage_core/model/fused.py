"""Steps of a block that one kernel can do: by kernels where they run, else by torch in several.

The results round less often than a layer after the other, and are no further from float64.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import operations
from .rope import rotate, rotate_in_type
from .sequence import ByToken, Factor, Weights, scale_tokens

# How a norm's weight is got as it is used: cast, copied and patched. Who brings other classes adds them. What
# is not known here, or does more than to multiply by its weight, is called as it is.
WEIGHT_OF: dict[type, Callable[[nn.Module, Tensor], Tensor | None]] = {
    nn.RMSNorm: lambda norm, x: norm.weight if type(norm) is nn.RMSNorm else None,
    operations.RMSNorm: lambda norm, x: norm.weight.to(x.dtype),
}
READY: set[torch.device] = set()  # where kernels were seen to work
CLOSE = 2e-5  # relative error of a kernel in float32


@functools.cache
def kernels() -> ModuleType | None:
    """The module of kernels, or None without Triton."""
    try:
        return importlib.import_module(".kernels", __package__)
    except Exception as error:  # whatever an unfit installation of Triton raises
        logging.debug("No fused kernels: %s", error)
        return None


@functools.cache
def look_for_kernels(device: torch.device) -> None:
    """From now on this device's tokens go through the kernels, if they can be built and are right there."""
    if device.type not in ("cuda", "meta") or kernels() is None:
        return
    try:
        works = device.type == "meta" or error_of_kernels(device) < CLOSE
        reason = "their results are wrong"
    except Exception as error:  # a compiler that is missing, a card that is not supported
        works, reason = False, error
    if works:
        READY.add(device)
    else:
        logging.warning("Z-Image runs without its fused kernels on %s: %s", device, reason)


@torch.no_grad()
def error_of_kernels(device: torch.device) -> float:
    """The largest relative error of the kernels against torch's operators, in float32 on a few tokens."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    module, eps = kernels(), 1e-5
    x, y, factor, weight = random(2, 3, 96), random(2, 3, 96), random(2, 1, 96), random(96)
    heads, weights, table = random(2, 3, 5, 32), random(2, 32), random(1, 3, 1, 16, 2, 2)
    q, k, _ = heads.split((3, 1, 1), dim=2)
    turned = [rotate(F.rms_norm(t, (32,), w, eps), table) for t, w in zip((q, k), weights, strict=True)]
    module.norm_rotate(q, k, *weights, table, eps)
    normed = F.rms_norm(x, (96,), weight, eps) * factor
    pairs = [
        (module.norm_scale(x, weight, factor, eps), normed),
        (module.norm_gate_add(y, x, weight, factor, eps), y + normed),
        (module.swiglu(x, y), F.silu(x) * y),
        *zip((q, k), turned, strict=True),
    ]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def by_kernel(x: Tensor) -> bool:
    # torch.compile makes kernels of its own from torch's operators
    return not torch.compiler.is_compiling() and x.device in READY and not torch.is_grad_enabled()


def weight_of(norm: nn.Module, x: Tensor) -> Tensor | None:
    """A norm's weight [D], beside x and of its type, for what does the norm's work; None: call the norm."""
    if norm._forward_hooks or norm._forward_pre_hooks:
        return None
    known = next((WEIGHT_OF[kind] for kind in type(norm).__mro__ if kind in WEIGHT_OF), None)
    weight = None if known is None else known(norm, x)
    return weight if weight is not None and (weight.dtype, weight.device) == (x.dtype, x.device) else None


def scaled(
    norm: nn.Module, x: Tensor, factor: Factor, weight: Tensor | None, folded: Tensor | None
) -> Tensor:
    """norm(x) times factor, x [B, S, D].

    weight: as `weight_of` gave it; folded: that times the factor, where all samples have one, [D].
    """
    if weight is not None and not isinstance(factor, ByToken) and by_kernel(x):
        return kernels().norm_scale(x, weight, factor, norm.eps)
    if folded is not None:
        return F.rms_norm(x, folded.shape, folded, norm.eps)
    return scale_tokens(norm(x), factor)


def gated(x: Tensor, norm: nn.Module, out: Tensor, gate: Factor, weight: Tensor | None) -> Tensor:
    """x + norm(out) times gate, both [B, S, D]."""
    if isinstance(gate, ByToken):
        return x + scale_tokens(norm(out), gate)
    if weight is not None and by_kernel(x):
        return kernels().norm_gate_add(x, out, weight, gate, norm.eps)
    return torch.addcmul(x, norm(out), gate)


def turned(
    heads: Tensor,
    counts: tuple[int, int],
    norms: tuple[nn.Module, nn.Module],
    weights: Weights,
    table: Tensor,
) -> tuple[Tensor, Tensor]:
    """q and k of heads [B, S, q, k and v, D], normed and turned to their positions; they may be overwritten.

    counts: heads of q and of k.
    """
    q, k = heads[:, :, : sum(counts)].split(counts, dim=2)
    width, eps = q.shape[-1], norms[0].eps
    known = weights.q is not None and weights.k is not None
    if known and width & (width - 1) == 0 and by_kernel(q):
        kernels().norm_rotate(q, k, weights.q, weights.k, table, eps)
        return q, k
    if weights.both is not None and counts[0] == counts[1] and not torch.is_grad_enabled():
        # of v too: torch copies q and k before it norms them alone, since they lie apart
        normed = F.rms_norm(heads, (width,), eps=eps)[:, :, : sum(counts)].unflatten(2, (2, -1))
        matrices = table.unsqueeze(2) * weights.both.view(2, 1, -1, 1, 2)
        return rotate_in_type(normed, matrices).unbind(2)
    q = rotate(norms[0](q), table)  # one after the other: each frees what it came from
    return q, rotate(norms[1](k), table)


def in_few(x: Tensor) -> bool:
    """Whether torch's operators are better few than small: on cards, in half types, without gradients."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    return half and x.device.type != "cpu" and not torch.is_grad_enabled()


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) * b; without gradients a may be overwritten."""
    if by_kernel(a):
        return kernels().swiglu(a, b)
    if torch.is_grad_enabled():
        return F.silu(a) * b
    return F.silu(a, inplace=True).mul_(b)
