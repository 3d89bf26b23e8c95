"""Files of tensors that are written one after the other: shapes first, values as they are made."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import ggml
from .errors import WeightsError
from .files import DTYPES

NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.uint8: "U8"}
ARCHITECTURE = "lumina2"  # by which GGUF loaders know Z-Image


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write under, which becomes `path` when all went well; else nothing is left.

    Raises WeightsError when a file of that name has come in the meantime.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        try:
            os.link(partial, path)  # takes no other file's place, as a rename might
        except FileExistsError:
            raise exists(path) from None
        except OSError:  # a disk without links
            if os.path.lexists(path):
                raise exists(path) from None
            partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def exists(path: Path) -> WeightsError:
    return WeightsError(f"{path} exists already, and nothing is written over a file: choose another name.")


class SafetensorsWriter:
    """https://huggingface.co/docs/safetensors. planned: each tensor's shape and type; all must be written."""

    def __init__(self, path: Path, planned: Mapping[str, Tensor], formats: Mapping[str, dict]) -> None:
        """formats: for the metadata, where ComfyUI before 0.4 looks for what newer ones find in tensors."""
        metadata = {"format": "pt"}
        if formats:
            said = {"format_version": "1.0", "layers": dict(formats)}
            metadata["_quantization_metadata"] = json.dumps(said)
        header: dict[str, Any] = {"__metadata__": metadata}
        at = 0
        # wide types first, so that each value lies at a multiple of its size
        for key, tensor in sorted(planned.items(), key=lambda item: -item[1].itemsize):
            end = at + tensor.nbytes
            offsets, shape = [at, end], list(tensor.shape)
            header[key] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": offsets}
            at = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.start, self.missing, self.header = 8 + len(text), set(planned), header
        self.file = path.open("xb")
        self.file.write(len(text).to_bytes(8, "little") + text)

    def write(self, key: str, tensor: Tensor) -> None:
        start, end = self.header[key]["data_offsets"]
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        assert content.nbytes == end - start, f"{key} is not what was planned"
        self.file.seek(self.start + start)
        self.file.write(content)
        self.missing.remove(key)

    def close(self) -> None:
        """Everything is on the disk. Raises ValueError when a tensor was not written."""
        if self.missing:
            raise ValueError(f"not written: {sorted(self.missing)[:3]}")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.close()


class GgufWriter:
    """By the package gguf. planned: in the order of writing; formats: of layers that are in blocks."""

    def __init__(self, path: Path, planned: Mapping[str, Tensor], formats: Mapping[str, dict]) -> None:
        import gguf

        plain = {dtype: gguf.GGMLQuantizationType(number) for number, dtype in ggml.PLAIN.items()}
        self.writer = gguf.GGUFWriter(path, ARCHITECTURE)
        self.writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        kinds = [spec["type"] for spec in formats.values()]
        if kinds:
            self.writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kinds[0]}"])
        for key, tensor in planned.items():
            spec = formats.get(key.removesuffix(".weight"))
            kind = gguf.GGMLQuantizationType[spec["type"]] if spec else plain[tensor.dtype]
            shape = gguf.quants.quant_shape_from_byte_shape(tensor.shape, kind) if spec else tensor.shape
            size = tensor.nbytes  # the type is given, so that of the array does not count
            self.writer.add_tensor_info(key, shape, _ANY, size, raw_dtype=kind)
        self.left = list(planned)[::-1]
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()

    def write(self, key: str, tensor: Tensor) -> None:
        """Not by gguf's own `write_tensor_data`: numpy's `tofile` under it hides that a disk is full."""
        assert self.left.pop() == key, "tensors are written in the order in which they were planned"
        (file,) = self.writer.fout
        self.writer.write_padding(file, file.tell())
        file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())

    def close(self) -> None:
        """Everything is on the disk. Raises ValueError when a tensor was not written."""
        if self.left:
            raise ValueError(f"not written: {self.left[:3]}")
        (file,) = self.writer.fout
        self.writer.write_padding(file, file.tell())
        file.flush()
        os.fsync(file.fileno())

    def __enter__(self) -> GgufWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self.writer.close()


_ANY = torch.empty(0).numpy().dtype
WRITERS = {".safetensors": SafetensorsWriter, ".gguf": GgufWriter}
