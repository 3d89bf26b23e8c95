"""safetensors files and sharded folders -> named tensors that stay mapped from disk until they are used."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import WeightsError

MAX_HEADER = 100_000_000  # bytes, the limit of the format's own reader
SMALL = 65_536  # bytes; markers and scales, whose values say how the rest is stored
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass
class RawFile:
    """Tensors under the names the file uses, and its string metadata."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> dict:
    """The JSON header of a safetensors file, without its tensors; raises WeightsError when the file is
    something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or not 2 <= length <= MAX_HEADER:
            raise WeightsError(f"{path.name} is not a safetensors file{_guess(path)}. {ACCEPTED}")
        if 8 + length > size:
            raise WeightsError(
                f"{path.name} is truncated: its header alone needs {8 + length} bytes, the file has {size}. "
                "Download it again."
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise WeightsError(
            f"{path.name} is not a safetensors file: its header is not readable. {ACCEPTED}"
        ) from None
    if 8 + length + end > size:
        raise WeightsError(
            f"{path.name} is truncated: {size} bytes of {8 + length + end}. Download it again."
        )
    return header


ACCEPTED = "Use .safetensors; pickled files (.ckpt, .pt, .bin) are never opened because they can run code."


def _guess(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    kinds = {
        b"PK\x03\x04": "a zip or a torch pickle",
        b"GGUF": "a GGUF file",
        b"vers": "a Git LFS pointer, not the file",
    }
    return f": it looks like {kinds[start]}" if start in kinds else ""


def read_tensors(source: str | os.PathLike, values: bool = True) -> RawFile:
    """A .safetensors file, or a folder holding one or a sharded set with its index.

    Nothing is read but headers: tensors are mapped and paged in when they are first touched. Without
    `values` all but the small ones are on the meta device: shapes and types, whatever the file's size.
    """
    path = Path(source)
    if not path.exists():
        raise WeightsError(f"{path} does not exist")
    parts = _shards(path) if path.is_dir() else [path]
    raw = RawFile(path.name, {})
    for part in parts:
        header = read_header(part)
        raw.metadata |= header.get("__metadata__") or {}
        try:
            with safe_open(part, framework="pt") as file:
                for key in file.keys():
                    entry = header[key]
                    start, end = entry["data_offsets"]
                    if values or end - start <= SMALL:
                        raw.tensors[key] = file.get_tensor(key)
                    else:
                        dtype = DTYPES.get(entry["dtype"], torch.uint8)
                        raw.tensors[key] = torch.empty(entry["shape"], dtype=dtype, device="meta")
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{part.name} cannot be read: {error}. Download it again.") from error
    return raw


def _shards(folder: Path) -> list[Path]:
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise WeightsError(
                f"{folder} holds {len(files)} .safetensors files and no index: choose one file"
            )
        return files
    index = json.loads(indexes[0].read_text(encoding="utf-8"))
    names = sorted(set(index["weight_map"].values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing)}. Download them."
        )
    return [folder / name for name in names]
