"""Which attention a card takes: torch's own choice, unless its architecture has a faster one.

Rates at (1, 24, 4608, 128) in bfloat16 on an H100: FlashAttention 2 in torch 329 TFLOP/s, cuDNN 631,
FlashAttention 3 632 (pytorch#142132). On cards before it, and on the GeForce line, cuDNN is no faster than
FlashAttention 2.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

HALF = (torch.bfloat16, torch.float16)
ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
HAS_PRIORITIES = "set_priority" in inspect.signature(sdpa_kernel).parameters
CUDNN = 91500  # the first version without the errors for which torch itself leaves it out

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # [B, S, H, D] each -> [B, S, H, D]
# q, k, v [T, H, D], where sequences begin and the last ends (int32), the longest, in q and k -> [T, H, D]
Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor | tuple]
CHOSEN: dict[tuple[str, int | None], Attend | None] = {}  # by the type and number of a device
PACKED: dict[tuple[str, int | None], Varlen | None] = {}  # for sequences one behind the other


class Architecture(NamedTuple):
    """What is faster there than torch's own choice: a package's functions, or cuDNN through torch."""

    package: str | None
    cudnn: bool


# By the major compute capability: Ampere and Ada, Hopper, Blackwell in data centres and at home.
FASTER = {
    8: Architecture("flash_attn", False),
    9: Architecture("flash_attn_interface", True),
    10: Architecture(None, True),
    12: Architecture("flash_attn", False),
}


def capability(device: torch.device) -> int | None:
    """The major number of a card's compute capability; None for what is no card of NVIDIA's."""
    if device.type != "cuda" or torch.version.hip:
        return None
    return torch.cuda.get_device_capability(device)[0]


def by_torch(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """bias: bool of the keys to see, or added to the scores, [B, H, S, S] or what expands to it."""
    grouped = {} if q.shape[2] == k.shape[2] else {"enable_gqa": True}
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, **grouped).transpose(1, 2)


def cudnn_first(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    with sdpa_kernel(ORDER, set_priority=True):
        return by_torch(q, k, v, bias)


def by_package(attend: Callable[..., Tensor | tuple]) -> Attend:
    """attend: flash_attn_func of a package, which takes neither masks nor float32."""

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if bias is not None or q.dtype not in HALF:
            return by_torch(q, k, v, bias)
        out = attend(q, k, v)
        return out[0] if isinstance(out, tuple) else out  # older ones return the sums as well

    return call


def look_at(device: torch.device) -> None:
    """Finds out what this device's tokens go through from now on; before a forward, not in a compiled one."""
    if (device.type, device.index) not in CHOSEN:
        found = capability(device)
        CHOSEN[device.type, device.index], PACKED[device.type, device.index] = chosen(found), packs(found)


def faster(device: torch.device) -> Attend | None:
    """What this card should take in place of torch's own choice, or None."""
    return CHOSEN.get((device.type, device.index))


def chosen(capability: int | None) -> Attend | None:
    package, cudnn = FASTER.get(capability, Architecture(None, False))
    if (attend := function(package, "flash_attn_func")) is not None:
        return by_package(attend)
    return cudnn_first if cudnn and has_cudnn() else None


def packs(capability: int | None) -> Varlen | None:
    """What takes sequences one behind the other. Torch's is FlashAttention 2: where cuDNN is faster, None."""
    if capability not in FASTER:
        return None
    package, cudnn = FASTER[capability]
    if (attend := function(package, "flash_attn_varlen_func")) is not None:
        return attend
    if (cudnn and has_cudnn()) or not torch.backends.cuda.is_flash_attention_available():
        return None
    return function("torch.nn.attention.varlen", "varlen_attn")


def has_cudnn() -> bool:
    return HAS_PRIORITIES and cudnn_version() >= CUDNN


def cudnn_version() -> int:
    return torch.backends.cudnn.version() or 0


def function(module: str | None, name: str) -> Callable | None:
    """Of an optional module, or None."""
    try:
        return getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError, OSError):  # also built for another torch
        return None


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention of q [B, S, H, D] on k and v [B, S, H or fewer, D]: [B, S, H, D]."""
    return (faster(q.device) or by_torch)(q, k, v, bias)


def starts(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Of sequences one behind the other, for `within`; None where this card has no kernel for them."""
    if PACKED.get((device.type, device.index)) is None:
        return None
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def within(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> Tensor | None:
    """Attention of each sequence within itself, q [B, S, H, D]; None: the kernel does not take these.

    starts: of all sequences in B * S tokens, and where the last ends; longest: tokens of the longest.
    """
    if q.dtype not in HALF or q.shape[2] != k.shape[2]:
        return None
    attend = PACKED[q.device.type, q.device.index]
    flat = (t.flatten(0, 1) for t in (q, k, v))
    out = attend(*flat, starts, starts, longest, longest)
    return (out[0] if isinstance(out, tuple) else out).unflatten(0, q.shape[:2])
