"""Which attention a card takes: torch's own choice, unless its architecture has a faster one.

Rates at (1, 24, 4608, 128) in bfloat16 on an H100: FlashAttention 2 in torch 329 TFLOP/s, cuDNN 631,
FlashAttention 3 632 (pytorch#142132). On cards before it, and on the GeForce line, cuDNN is no faster than
FlashAttention 2.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
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
CHOSEN: dict[tuple[str, int | None], Attend | None] = {}  # by the type and number of a device


class Architecture(NamedTuple):
    """What is faster there than torch's own choice: a package's flash_attn_func, or cuDNN through torch."""

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
        CHOSEN[device.type, device.index] = chosen(capability(device))


def faster(device: torch.device) -> Attend | None:
    """What this card should take in place of torch's own choice, or None."""
    return CHOSEN.get((device.type, device.index))


def chosen(capability: int | None) -> Attend | None:
    package, cudnn = FASTER.get(capability, Architecture(None, False))
    if package is not None and (attend := flash(package)) is not None:
        return by_package(attend)
    return cudnn_first if cudnn and HAS_PRIORITIES and cudnn_version() >= CUDNN else None


def cudnn_version() -> int:
    return torch.backends.cudnn.version() or 0


def flash(package: str) -> Callable | None:
    try:
        return importlib.import_module(package).flash_attn_func
    except (ImportError, AttributeError, OSError):  # also built for another torch
        return None


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Softmax attention of q [B, S, H, D] on k and v [B, S, H or fewer, D]: [B, S, H, D]."""
    return (faster(q.device) or by_torch)(q, k, v, bias)
