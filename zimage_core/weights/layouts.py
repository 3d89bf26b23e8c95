"""How quantised layers are stored: a format per row, with the matrix that its tensors stand for.

Formats are those of ComfyUI's markers, told apart by `comfy/ops.py` (`_load_quantized_module`) and defined by
the layouts of https://github.com/Comfy-Org/comfy-kitchen, and "gguf" for the blocks of ggml.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from . import ggml

FP8 = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
}
SCALE_SHAPES = "one value, one per row, or one per block of rows and columns"
BLOCK = 128  # rows and columns to a scale where neither divides the weight (DeepSeek-V3, section 3.3)
LARGEST_ROTATION = 4096  # columns; ComfyUI's own is 256
AT_ONCE = 1 << 22  # values of a matrix that are computed together
TILE = (128, 4)  # block scales are stored in tiles of so many rows and columns, as cuBLAS reads them
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # e2m1; the fourth bit is the sign
BYTES = (torch.uint8, torch.int8)
PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
E4M3 = (torch.float8_e4m3fn, torch.uint8)  # types under which files have such numbers
E8M0 = (torch.uint8, *([torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []))

Spec = Mapping[str, Any]  # {"format": ..., and what else a format needs}
Parts = Mapping[str, Tensor]  # of one layer: "weight" and its companions


class Layout(NamedTuple):
    """One format. problem: what is wrong with the shapes of a layer's tensors, None when they fit."""

    stored: tuple[torch.dtype, ...]
    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    options: tuple[str, ...]  # keys of a marker beside "format" that change the weights
    shape: Callable[[Tensor, Spec], tuple[int, ...]]
    problem: Callable[[Parts, Spec], str | None]
    values: Callable[[Parts, Spec], Tensor]  # in float32


def rotation(size: int, device: torch.device) -> Tensor:
    """ConvRot's rotation (https://arxiv.org/abs/2512.03673) [size, size]: symmetric, its own inverse."""
    four = torch.ones(4, 4, device=device) - 2 * torch.eye(4, device=device).flip(0)
    matrix = functools.reduce(torch.kron, [four] * (size.bit_length() // 2))
    return matrix / size**0.5


def rotated(matrix: Tensor, size: int) -> Tensor:
    """Each row in groups of `size` columns, rotated; once more gives the matrix again."""
    groups = matrix.unflatten(1, (-1, size))
    return (groups @ rotation(size, matrix.device)).flatten(1)


def _rotation_size(spec: Spec) -> int:
    return int(spec.get("convrot_groupsize", 256))


def _rotation_problem(columns: int, spec: Spec) -> str | None:
    size = _rotation_size(spec)
    power_of_four = size >= 4 and size & (size - 1) == 0 and size.bit_length() % 2 == 1
    if not power_of_four or size > LARGEST_ROTATION or columns % size:
        return (
            f"{columns} columns rotated in groups of {size}, expected a power of 4 that divides them, at "
            f"most {LARGEST_ROTATION}"
        )
    return None


def scale_blocks(scale: Tensor, weight: Tensor) -> tuple[int, int] | None:
    """Rows and columns of the weight to each value of its scale; None where the two do not fit.

    Scales are of shape [], [1], [rows], [rows, 1], [blocks of rows, blocks of columns], or
    [rows, blocks of columns, 1].
    """
    if weight.ndim == 0 or weight.numel() == 0 or scale.numel() == 0:
        return None
    rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
    if scale.numel() == 1:
        return rows, columns
    if scale.shape[0] == rows and scale.numel() == rows:
        return 1, columns
    if scale.ndim == 3 and scale.shape[0] == rows and scale.shape[2] == 1:
        scale = scale[..., 0]
    if scale.ndim != 2 or weight.ndim != 2:
        return None
    height, width = (_block(size, count) for size, count in zip(weight.shape, scale.shape, strict=True))
    return (height, width) if height and width else None


def _block(size: int, count: int) -> int | None:
    """The size of the blocks when `count` of them cover `size`."""
    if -(-size // BLOCK) == count:
        return BLOCK
    return size // count if size % count == 0 else None


def _scale_problem(parts: Parts, spec: Spec) -> str | None:
    weight, scale = parts["weight"], parts["weight_scale"]
    if scale_blocks(scale, weight) is None:
        found = f"a weight of shape {tuple(weight.shape)} with scales of shape {tuple(scale.shape)}"
        return f"{found}, expected {SCALE_SHAPES}"
    return None


def _scaled(parts: Parts, spec: Spec) -> Tensor:
    weight, scale = parts["weight"], parts["weight_scale"].float()
    height, width = scale_blocks(scale, weight)
    rows = weight.shape[0]
    matrix = weight.float().reshape(rows, -1)
    if scale.numel() == 1:
        factors = scale.reshape(1, 1)
    else:
        factors = scale.reshape(-(-rows // height), -1)
        factors = factors.repeat_interleave(height, 0)[:rows]
        factors = factors.repeat_interleave(width, 1)[:, : matrix.shape[1]]
    return (matrix * factors).reshape(weight.shape)


def _int8_problem(parts: Parts, spec: Spec) -> str | None:
    weight, scale = parts["weight"], parts["weight_scale"]
    if weight.ndim != 2 or scale.numel() not in (1, weight.shape[0]):
        return f"{tuple(weight.shape)} with scales {tuple(scale.shape)}, expected one scale or one a row"
    if problem := _type_problem(parts, {"weight_scale": PLAIN}):
        return problem
    return _rotation_problem(weight.shape[1], spec) if spec.get("convrot") else None


def _int8(parts: Parts, spec: Spec) -> Tensor:
    matrix = _scaled(parts, spec)
    return rotated(matrix, _rotation_size(spec)) if spec.get("convrot") else matrix


def _tiles(rows: int, columns: int) -> tuple[int, int]:
    return -(-rows // TILE[0]), -(-columns // TILE[1])


def _untiled(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Block scales as cuBLAS reads them -> [rows, columns].

    https://docs.nvidia.com/cuda/cublas/#d-block-scaling-factors-layout
    """
    down, right = _tiles(rows, columns)
    flat = scales.reshape(-1)
    plain = rearrange(flat, "(r c b a k) -> (r a b) (c k)", r=down, c=right, a=4, b=32, k=4)
    return plain[:rows, :columns]


def _type_problem(parts: Parts, wanted: Mapping[str, tuple[torch.dtype, ...]]) -> str | None:
    for name, types in wanted.items():
        if name in parts and parts[name].dtype not in types:
            expected = " or ".join(str(dtype).removeprefix("torch.") for dtype in types)
            return f"{name} of {str(parts[name].dtype).removeprefix('torch.')}, expected {expected}"
    return None


def _tiled_problem(
    group: int, columns_per_byte: int, scales: tuple[torch.dtype, ...]
) -> Callable[[Parts, Spec], str | None]:
    def problem(parts: Parts, spec: Spec) -> str | None:
        weight, scale = parts["weight"], parts["weight_scale"]
        if weight.ndim != 2 or weight.shape[1] * columns_per_byte % group:
            return f"a weight of shape {tuple(weight.shape)}, expected a matrix in groups of {group} columns"
        down, right = _tiles(weight.shape[0], weight.shape[1] * columns_per_byte // group)
        if scale.numel() != down * right * TILE[0] * TILE[1]:
            return (
                f"{scale.numel()} block scales of {scale.dtype} for a weight of shape {tuple(weight.shape)}, "
                f"expected {down * right * TILE[0] * TILE[1]} of one byte"
            )
        types = {"weight_scale": scales, "weight_scale_2": PLAIN, "pre_quant_scale": PLAIN}
        if problem := _type_problem(parts, types):
            return problem
        extra = parts.get("weight_scale_2")
        if extra is not None and extra.numel() != 1:
            return f"weight_scale_2 of shape {tuple(extra.shape)}, expected one value"
        smooth = parts.get("pre_quant_scale")
        if smooth is not None and smooth.numel() != weight.shape[1] * columns_per_byte:
            return f"pre_quant_scale of shape {tuple(smooth.shape)}, expected one value a column"
        return None

    return problem


def _grouped(matrix: Tensor, scales: Tensor, group: int) -> Tensor:
    return (matrix.unflatten(1, (-1, group)) * scales[..., None]).flatten(1)


def _mxfp8(parts: Parts, spec: Spec) -> Tensor:
    matrix, group = parts["weight"].float(), 32
    exponents = parts["weight_scale"].view(torch.uint8)
    exponents = _untiled(exponents, matrix.shape[0], matrix.shape[1] // group)
    return _grouped(matrix, torch.exp2(exponents.float() - 127), group)


def _nibbles(packed: Tensor, high_first: bool) -> Tensor:
    """[rows, n] bytes -> [rows, 2n] numbers of four bits."""
    packed = packed.view(torch.uint8)
    low, high = packed & 15, packed >> 4
    return torch.stack((high, low) if high_first else (low, high), dim=-1).flatten(1)


def _nvfp4(parts: Parts, spec: Spec) -> Tensor:
    codes = _nibbles(parts["weight"], high_first=True)
    table = torch.tensor([*FP4, *(-value for value in FP4)], device=codes.device)
    scales = parts["weight_scale"].view(torch.float8_e4m3fn)
    scales = _untiled(scales.float(), codes.shape[0], codes.shape[1] // 16)
    matrix = _grouped(table[codes.int()], scales * parts["weight_scale_2"].float(), 16)
    smooth = parts.get("pre_quant_scale")  # what the layer's input is multiplied by
    return matrix if smooth is None else matrix * smooth.float().reshape(1, -1)


def _signed(codes: Tensor) -> Tensor:
    return ((codes.to(torch.int8) ^ 8) - 8).float()


def _w4a4_problem(parts: Parts, spec: Spec) -> str | None:
    weight, scale = parts["weight"], parts["weight_scale"]
    if weight.ndim != 2 or scale.numel() != weight.shape[0]:
        return f"{tuple(weight.shape)} with scales {tuple(scale.shape)}, expected one scale a row"
    if problem := _type_problem(parts, {"weight_scale": PLAIN}):
        return problem
    return _rotation_problem(2 * weight.shape[1], spec)


def _w4a4(parts: Parts, spec: Spec) -> Tensor:
    matrix = _signed(_nibbles(parts["weight"], high_first=False))
    return rotated(matrix * parts["weight_scale"].float().reshape(-1, 1), _rotation_size(spec))


def _w4a8_problem(parts: Parts, spec: Spec) -> str | None:
    weight, group = parts["weight"], int(spec.get("group_size", 16))
    if weight.ndim != 2 or group < 1 or 2 * weight.shape[1] % group:
        return f"a weight of shape {tuple(weight.shape)}, expected a matrix in groups of {group} columns"
    rows, groups = weight.shape[0], 2 * weight.shape[1] // group
    wanted = {
        "weight_s_rel": (rows, groups),
        "weight_s_channel": (rows,),
        "weight_codebook": (16,),
        "weight_correction": (groups, rows),
    }
    for name, shape in wanted.items():
        if name in parts and tuple(parts[name].shape) != shape:
            return f"{name} of shape {tuple(parts[name].shape)}, expected {shape}"
    types = dict.fromkeys(wanted, PLAIN) | {"weight_s_rel": (*PLAIN, *E4M3)}
    if problem := _type_problem(parts, types):
        return problem
    return _rotation_problem(2 * weight.shape[1], spec)


def _w4a8(parts: Parts, spec: Spec) -> Tensor:
    """The weights are what its integers stand for: four bits and a scale give eight bits, rounded."""
    codes, group = _nibbles(parts["weight"], high_first=False), int(spec.get("group_size", 16))
    codebook = parts.get("weight_codebook")
    matrix = codes.float() - 8 if codebook is None else codebook.float()[codes.int()]
    relative = parts["weight_s_rel"]
    relative = relative.view(torch.float8_e4m3fn) if relative.dtype == torch.uint8 else relative
    matrix = _grouped(matrix, relative.float(), group).round().clamp(-127, 127)
    matrix = matrix * parts["weight_s_channel"].float()[:, None]
    if "weight_correction" in parts:
        matrix = matrix + parts["weight_correction"].float().T.repeat_interleave(group, 1)
    return rotated(matrix, _rotation_size(spec))


def _gguf_problem(parts: Parts, spec: Spec) -> str | None:
    weight, block = parts["weight"], ggml.BY_NAME.get(spec.get("type"))
    if block is None or not ggml.is_readable(block.name):
        return f"the type {str(spec.get('type'))[:60]!r}, which is not read here"
    if weight.ndim != 2 or weight.shape[1] % block.bytes:
        return f"a weight of shape {tuple(weight.shape)}, expected rows of {block.bytes} bytes a block"
    return None


def _gguf_shape(weight: Tensor, spec: Spec) -> tuple[int, ...]:
    block = ggml.BY_NAME[spec["type"]]
    return weight.shape[0], weight.shape[1] // block.bytes * block.values


def _as_stored(weight: Tensor, spec: Spec) -> tuple[int, ...]:
    return tuple(weight.shape)


def _two_a_byte(weight: Tensor, spec: Spec) -> tuple[int, ...]:
    return (*weight.shape[:-1], 2 * weight.shape[-1])


SCALE, INPUT = ("weight_scale",), ("input_scale",)
ROTATED = ("convrot", "convrot_groupsize")
FULL = ("full_precision_matrix_mult",)
LAYOUTS = {
    **{
        name: Layout((dtype,), SCALE, INPUT, FULL, _as_stored, _scale_problem, _scaled)
        for name, dtype in FP8.items()
    },
    "int8_tensorwise": Layout((torch.int8,), SCALE, INPUT, ROTATED, _as_stored, _int8_problem, _int8),
    "mxfp8": Layout(
        E4M3[:1], SCALE, INPUT, FULL, _as_stored, _tiled_problem(32, 1, E8M0), _mxfp8
    ),
    "nvfp4": Layout(
        BYTES,
        ("weight_scale", "weight_scale_2"),
        ("input_scale", "pre_quant_scale"),
        FULL,
        _two_a_byte,
        _tiled_problem(16, 2, E4M3),
        _nvfp4,
    ),
    "convrot_w4a4": Layout(
        BYTES, SCALE, (), ("convrot_groupsize", "linear_dtype"), _two_a_byte, _w4a4_problem, _w4a4
    ),
    "asym_w4a8_int8": Layout(
        BYTES,
        ("weight_s_rel", "weight_s_channel"),
        ("weight_codebook", "weight_correction"),
        ("group_size", "convrot_groupsize"),
        _two_a_byte,
        _w4a8_problem,
        _w4a8,
    ),
    "gguf": Layout(
        (torch.uint8,), (), (), ("type",), _gguf_shape, _gguf_problem,
        lambda parts, spec: ggml.values(parts["weight"], spec["type"]),
    ),
}  # fmt: skip
COMPANIONS = {name for layout in LAYOUTS.values() for name in (*layout.needs, *layout.may_have)}


def parts_of(tensors: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """A layer's weight and companions by their own names."""
    names = ("weight", *COMPANIONS)
    return {name: tensors[f"{layer}.{name}"] for name in names if f"{layer}.{name}" in tensors}


def shape_of(weight: Tensor, spec: Spec | None) -> tuple[int, ...]:
    """Of the matrix that a stored weight stands for; spec None: of a plain one."""
    return tuple(weight.shape) if spec is None else LAYOUTS[spec["format"]].shape(weight, spec)


def matrix_of(parts: Parts, spec: Spec, dtype: torch.dtype) -> Tensor:
    """The matrix that a quantised layer stands for, in dtype; it is computed in float32.

    A few rows at a time where rows have no companions: that takes less memory, and half the time on a CPU.
    """
    layout, weight = LAYOUTS[spec["format"]], parts["weight"]
    if layout.needs:
        return layout.values(parts, spec).to(dtype)
    shape = layout.shape(weight, spec)
    matrix = torch.empty(shape, dtype=dtype, device=weight.device)
    rows = max(1, AT_ONCE // shape[1])
    for into, packed in zip(matrix.split(rows), weight.split(rows), strict=True):
        into.copy_(layout.values({**parts, "weight": packed}, spec))
    return matrix


def dequantise(tensors: Mapping[str, Tensor], layer: str, spec: Spec, dtype: torch.dtype) -> Tensor:
    """The weight of one quantised layer in dtype."""
    return matrix_of(parts_of(tensors, layer), spec, dtype)
