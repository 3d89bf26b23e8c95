"""GGUF files -> named tensors that stay mapped from disk, matrices as rows of ggml's blocks.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import ggml
from .errors import WeightsError, some
from .impostors import AGAIN

MAGIC = b"GGUF"
VERSIONS = (2, 3)
BIG_ENDIAN = [version.to_bytes(4, "big") for version in VERSIONS]
MOST = {"tensors": 100_000, "entries of metadata": 100_000, "dimensions": 8}
LONGEST_NAME = 512  # bytes
LONGEST_TEXT = 1 << 26  # bytes of a text in the metadata; a tokenizer as a whole has some 10 MB
DEEPEST = 8  # lists in lists
LONGEST_KEPT = 64  # numbers; longer lists in the metadata are passed over, as are texts in lists
TEXT, LIST = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNMENT = "general.alignment"
SPLIT = "split.count"  # by llama.cpp's gguf-split, which makes several files of one
ORIGINAL = "comfy.gguf.orig_shape."  # + a tensor's name: its shape before it was reshaped to fit blocks


class Stored(NamedTuple):
    """A tensor as the header describes it: rows first, ggml's number of the type, where its bytes are."""

    shape: tuple[int, ...]
    type: int
    start: int
    size: int


@dataclass
class _Reader:
    """Numbers and texts of a header one after the other. Raises ValueError or struct.error where they end."""

    content: Any  # bytes, mapped
    at: int = 0

    def number(self, code: str) -> Any:
        value = struct.unpack_from(f"<{code}", self.content, self.at)[0]
        self.at += struct.calcsize(f"<{code}")
        return value

    def count(self, what: str) -> int:
        found = self.number("I" if what == "dimensions" else "Q")
        if found > MOST[what]:
            raise ValueError(f"{found} {what}")
        return found

    def text(self, longest: int = LONGEST_NAME) -> str:
        length = self.number("Q")
        if length > min(len(self.content) - self.at, longest):
            raise ValueError(f"a text of {length} bytes")
        start, self.at = self.at, self.at + length
        return self.content[start : self.at].decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """None for lists that nobody here reads; depth: of the list that this value is in."""
        if kind == TEXT:
            return self.text(LONGEST_TEXT)
        if kind != LIST:
            return self.number(_number(kind))
        inner, length = self.number("I"), self.number("Q")
        if inner in (TEXT, LIST):
            if length > len(self.content):
                raise ValueError(f"a list of {length}")
            if depth == DEEPEST:
                raise ValueError(f"lists more than {DEEPEST} deep")
            for _ in range(length):
                self.value(inner, depth + 1) if inner == LIST else self._skip_text()
            return None
        code = _number(inner)
        if length <= LONGEST_KEPT:
            return [self.number(code) for _ in range(length)]
        self.at += length * struct.calcsize(f"<{code}")
        return None

    def _skip_text(self) -> None:
        length = self.number("Q")
        if length > len(self.content) - self.at:
            raise ValueError(f"a text of {length} bytes")
        self.at += length


def _number(kind: int) -> str:
    if kind not in NUMBERS:
        raise ValueError(f"a value of type {kind}")
    return NUMBERS[kind]


def _header(content: Any) -> tuple[dict[str, Any], dict[str, Stored]]:
    """The metadata and the tensors. Raises ValueError or struct.error for what is not a whole header."""
    reader = _Reader(content, len(MAGIC))
    version = reader.number("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version}, expected 2 or 3")
    tensors, pairs = reader.count("tensors"), reader.count("entries of metadata")
    metadata = {reader.text(): reader.value(reader.number("I")) for _ in range(pairs)}
    described = []
    for _ in range(tensors):
        key = reader.text()
        shape = tuple(reader.number("Q") for _ in range(reader.count("dimensions")))[::-1]
        described.append((key, shape, reader.number("I"), reader.number("Q")))
    step = metadata.get(ALIGNMENT, 32)
    if type(step) is not int or not 8 <= step <= 65_536 or step & (step - 1):
        raise ValueError(f"{ALIGNMENT} {str(step)[:60]}, expected a power of 2 from 8 on")
    data = -(-reader.at // step) * step
    stored = {}
    for key, shape, kind, offset in described:
        if key in stored:
            raise ValueError(f"two tensors {key[:60]}")
        stored[key] = Stored(shape, kind, data + offset, _size(key, shape, kind))
    _check_order(stored, data, step, len(content))
    return metadata, stored


def _check_order(stored: Mapping[str, Stored], at: int, step: int, end: int) -> None:
    """Tensors lie one behind the other up to the file's end, each filled up to the alignment.

    A wrong type, shape or place shows here.
    """
    for key, entry in sorted(stored.items(), key=lambda item: item[1].start):
        if entry.start != at:
            raise ValueError(f"{key[:60]} begins at byte {entry.start}, expected {at}")
        at = -(-(at + entry.size) // step) * step
    if end > at:
        raise ValueError(f"{end - at} bytes follow its last tensor")


def _size(key: str, shape: tuple[int, ...], kind: int) -> int:
    if 0 in shape:
        raise ValueError(f"{key[:60]} of shape {shape} holds nothing")
    if kind in ggml.PLAIN:
        return math.prod(shape) * ggml.PLAIN[kind].itemsize
    if kind not in ggml.BLOCKS:
        raise ValueError(f"{key[:60]} is of ggml's type {kind}, which is not known here")
    block = ggml.BLOCKS[kind]
    if not shape or shape[-1] % block.values:
        raise ValueError(f"{key[:60]} has rows of {shape[-1:]}, expected a multiple of {block.values}")
    return math.prod(shape) // block.values * block.bytes


def read_gguf(
    path: Path, name: str, values: bool, small: int
) -> tuple[dict[str, Tensor], dict[str, dict], dict[str, str]]:
    """(tensors, formats of those that stay in blocks, texts of the metadata); name: the file's, for messages.

    Matrices called `<layer>.weight` stay as they are stored, [rows, bytes]; others become numbers. Without
    `values` all but those of up to `small` bytes are on the meta device.

    Raises WeightsError when the file is damaged, or holds what cannot be read here.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[len(MAGIC) : len(MAGIC) + 4] in BIG_ENDIAN:
                raise WeightsError(f"{name} is a GGUF file for big-endian machines: choose another one.")
            metadata, stored = _header(content)
            size = len(content)
    except WeightsError:
        raise
    except (struct.error, ValueError, OverflowError, MemoryError, OSError) as error:
        raise WeightsError(f"{name} is a damaged GGUF file: {str(error)[:200]}. {AGAIN}") from error
    if isinstance(parts := metadata.get(SPLIT), int) and parts > 1:
        raise WeightsError(
            f"{name} is one of {parts} parts of a GGUF file that was split. Join them with llama.cpp's "
            "`llama-gguf-split --merge`, or download the file in one piece."
        )
    end = max((entry.start + entry.size for entry in stored.values()), default=0)
    if end > size:
        raise WeightsError(f"{name} is truncated: {size} bytes of {end}. {AGAIN}")
    mapped = torch.from_numpy(np.memmap(path, np.uint8, "c"))  # "c": torch wants it writable
    tensors, formats = {}, {}
    for key, entry in stored.items():
        data = mapped[entry.start : entry.start + entry.size]
        shape = _original_shape(name, key, entry.shape, metadata)
        with_values = values or entry.size <= small
        if entry.type in ggml.PLAIN:
            dtype = ggml.PLAIN[entry.type]
            tensors[key] = data.view(dtype).reshape(shape) if with_values else _nothing(shape, dtype)
            continue
        block = ggml.BLOCKS[entry.type]
        _check_readable(name, key, block)
        rows = data.reshape(-1, entry.shape[-1] // block.values * block.bytes)
        if key.endswith(".weight") and len(shape) == 2 and shape == entry.shape:
            formats[key.removesuffix(".weight")] = {"format": "gguf", "type": block.name}
            tensors[key] = rows if with_values else _nothing(rows.shape, torch.uint8)
        else:
            numbers = ggml.values(rows, block.name) if with_values else _nothing(shape, torch.float32)
            tensors[key] = numbers.reshape(shape)
    return tensors, formats, {key: value for key, value in metadata.items() if isinstance(value, str)}


def _nothing(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _original_shape(
    name: str, key: str, shape: tuple[int, ...], metadata: Mapping[str, Any]
) -> tuple[int, ...]:
    original = metadata.get(ORIGINAL + key)
    if original is None:
        return shape
    sizes = tuple(original) if isinstance(original, list) else ()
    if not all(type(size) is int and size >= 0 for size in sizes) or math.prod(sizes) != math.prod(shape):
        raise WeightsError(
            f"{name} stores {key} in the shape {shape} and says that it was {str(original)[:60]}: it is "
            "damaged or was converted wrongly. Download it again or choose another file."
        )
    return sizes


def _check_readable(name: str, key: str, block: ggml.Block) -> None:
    if not ggml.is_readable(block.name):
        ours = some([b.name for b in ggml.BLOCKS.values() if b.read], count=10)
        raise WeightsError(
            f"{name} stores {key} as {block.name}. Without a Python package gguf that knows it this loader "
            f"reads {ours}: install the newest gguf into ComfyUI's Python, or use a file of one of those "
            "types."
        )
