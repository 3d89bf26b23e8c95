"""ggml's block types: bytes of quantised rows -> their values.

https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h has the blocks, each a struct whose fields are
read here in its order. What is not in `BLOCKS` is left to the package gguf, where it is installed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

K = 256  # values of a block of the K types


def _fields(packed: Tensor, width: int) -> Tensor:
    """[..., n] bytes -> [..., 8 / width, n]: the numbers of `width` bits in each, the lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    return (packed[..., None, :] >> shifts[:, None]) & (2**width - 1)


def _grouped(packed: Tensor, size: int, width: int) -> Tensor:
    """[..., groups * size] bytes -> [..., values]: of each group all first fields, then all second ..."""
    return _fields(packed.unflatten(-1, (-1, size)), width).flatten(-3)


def _half(two: Tensor) -> Tensor:
    return two.contiguous().view(torch.float16).float()


def _scaled(values: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """[blocks, values] times [blocks, scales], each for as many values in a row; less the minima."""
    values = values.float().unflatten(-1, (scales.shape[-1], -1)) * scales[..., None]
    return (values if minima is None else values - minima[..., None]).flatten(-2)


def _q4_0(block: Tensor) -> Tensor:
    d, q = block.split((2, 16), -1)
    return _half(d) * (_grouped(q, 16, 4).float() - 8)


def _q4_1(block: Tensor) -> Tensor:
    d, m, q = block.split((2, 2, 16), -1)
    return _half(d) * _grouped(q, 16, 4).float() + _half(m)


def _fifth_bits(four: Tensor) -> Tensor:
    return _fields(four, 1).transpose(-1, -2).flatten(-2) << 4


def _q5_0(block: Tensor) -> Tensor:
    d, high, q = block.split((2, 4, 16), -1)
    return _half(d) * ((_grouped(q, 16, 4) | _fifth_bits(high)).float() - 16)


def _q5_1(block: Tensor) -> Tensor:
    d, m, high, q = block.split((2, 2, 4, 16), -1)
    return _half(d) * (_grouped(q, 16, 4) | _fifth_bits(high)).float() + _half(m)


def _q8_0(block: Tensor) -> Tensor:
    d, q = block.split((2, 32), -1)
    return _half(d) * q.view(torch.int8).float()


def _q2_k(block: Tensor) -> Tensor:
    scales, q, d, dmin = block.split((16, 64, 2, 2), -1)
    return _scaled(_grouped(q, 32, 2), _half(d) * (scales & 15).float(), _half(dmin) * (scales >> 4).float())


def _q3_k(block: Tensor) -> Tensor:
    high, q, scales, d = block.split((32, 64, 12, 2), -1)
    low_bits, high_bits = scales.split((8, 4), -1)
    scales = (_grouped(low_bits, 8, 4) | _grouped(high_bits, 4, 2) << 4).float() - 32
    values = (_grouped(q, 32, 2) | _grouped(high, 32, 1) << 2).float() - 4
    return _scaled(values, _half(d) * scales)


def _scales_and_minima(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes -> eight scales and eight minima of six bits."""
    scales, minima, rest = packed.split((4, 4, 4), -1)
    return (
        torch.cat((scales & 63, (rest & 15) | (scales >> 6 << 4)), -1).float(),
        torch.cat((minima & 63, (rest >> 4) | (minima >> 6 << 4)), -1).float(),
    )


def _q4_k(block: Tensor) -> Tensor:
    d, dmin, packed, q = block.split((2, 2, 12, 128), -1)
    scales, minima = _scales_and_minima(packed)
    return _scaled(_grouped(q, 32, 4), _half(d) * scales, _half(dmin) * minima)


def _q5_k(block: Tensor) -> Tensor:
    d, dmin, packed, high, q = block.split((2, 2, 12, 32, 128), -1)
    scales, minima = _scales_and_minima(packed)
    values = _grouped(q, 32, 4) | _grouped(high, 32, 1) << 4
    return _scaled(values, _half(d) * scales, _half(dmin) * minima)


def _q6_k(block: Tensor) -> Tensor:
    low, high, scales, d = block.split((128, 64, 16, 2), -1)
    values = (_grouped(low, 64, 4) | _grouped(high, 32, 2) << 4).float() - 32
    return _scaled(values, _half(d) * scales.contiguous().view(torch.int8).float())


class Block(NamedTuple):
    """A type by its number in files: values and bytes of a block, and what reads [blocks, bytes] here."""

    name: str
    values: int
    bytes: int
    read: Callable[[Tensor], Tensor] | None = None


PLAIN = {  # numbers of types that are no blocks
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
BLOCKS = {
    2: Block("Q4_0", 32, 18, _q4_0),
    3: Block("Q4_1", 32, 20, _q4_1),
    6: Block("Q5_0", 32, 22, _q5_0),
    7: Block("Q5_1", 32, 24, _q5_1),
    8: Block("Q8_0", 32, 34, _q8_0),
    10: Block("Q2_K", K, 84, _q2_k),
    11: Block("Q3_K", K, 110, _q3_k),
    12: Block("Q4_K", K, 144, _q4_k),
    13: Block("Q5_K", K, 176, _q5_k),
    14: Block("Q6_K", K, 210, _q6_k),
    16: Block("IQ2_XXS", K, 66),
    17: Block("IQ2_XS", K, 74),
    18: Block("IQ3_XXS", K, 98),
    19: Block("IQ1_S", K, 50),
    20: Block("IQ4_NL", 32, 18),
    21: Block("IQ3_S", K, 110),
    22: Block("IQ2_S", K, 82),
    23: Block("IQ4_XS", K, 136),
    29: Block("IQ1_M", K, 56),
    34: Block("TQ1_0", K, 54),
    35: Block("TQ2_0", K, 66),
    39: Block("MXFP4", 32, 17),
    40: Block("NVFP4", 64, 36),
}
BY_NAME = {block.name: block for block in BLOCKS.values()}


def values(packed: Tensor, name: str) -> Tensor:
    """[rows, bytes] of uint8 in blocks of a type -> [rows, values] in float32, on the device of `packed`.

    Raises ImportError where the type is read by the package gguf and that is not installed.
    """
    block = BY_NAME[name]
    if block.read:
        blocks = packed.reshape(-1, block.bytes)
        return block.read(blocks).reshape(packed.shape[0], -1)
    if packed.is_meta:
        return packed.new_empty(packed.shape[0], packed.shape[1] // block.bytes * block.values).float()
    return _by_gguf(packed, name)


@functools.cache
def is_readable(name: str) -> bool:
    """Whether a type is read here, or by the package gguf as it is installed."""
    if BY_NAME[name].read:
        return True
    try:
        _by_gguf(torch.zeros(1, BY_NAME[name].bytes, dtype=torch.uint8), name)
    except (ImportError, AttributeError, KeyError, NotImplementedError):
        return False
    return True


def _by_gguf(packed: Tensor, name: str) -> Tensor:
    import gguf

    found = gguf.quants.dequantize(packed.cpu().numpy(), gguf.GGMLQuantizationType[name])
    return torch.from_numpy(found).to(packed.device)
