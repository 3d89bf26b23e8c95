"""Files and sharded folders -> named tensors that stay mapped from disk until they are used."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import WeightsError, some
from .gguf_file import MAGIC, read_gguf
from .impostors import AGAIN, refuse

MAX_HEADER = 100_000_000  # bytes, the limit of the format's own reader
SMALL = 65_536  # bytes; markers, scales, norms and biases, whose values are looked at in any case
INDEX = "*.safetensors.index*.json"  # a variant such as fp16 stands before the last ending
VARIANT = re.compile(r"\.index\.\w+\.json$")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
PART_FOLDERS = {  # in diffusers' layout
    "transformer": "transformer",
    "text_encoder": "text_encoder",
    "autoencoder": "vae",
    "vision": "siglip",
}
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


@dataclass
class RawFile:
    """Tensors under the names the file uses, its string metadata, and the formats that its types tell."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    formats: dict[str, dict] = field(default_factory=dict)


def read_header(path: Path, name: str) -> dict:
    """The JSON header of a safetensors file, without its tensors; name: the file's, for messages.

    Raises WeightsError when the file is something else or shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER:
            refuse(path, name, f"is not a safetensors file, or its header is damaged. {AGAIN}")
        if 8 + length > size:
            found = f"its header alone needs {8 + length} bytes, the file has {size}"
            refuse(path, name, f"is truncated: {found}. {AGAIN}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        end = max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        whole = 8 + length + int(end)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError):
        refuse(path, name, f"is not a safetensors file, or its header is damaged. {AGAIN}")
    if whole > size:
        raise WeightsError(f"{name} is truncated: {size} bytes of {whole}. {AGAIN}")
    return header


def names_in(path: Path) -> list[str]:
    """Of a file's tensors, by its header alone. Raises WeightsError when it is neither format."""
    if is_gguf(path):
        return list(read_gguf(path, path.name, False, 0)[0])
    return [name for name in read_header(path, path.name) if name != "__metadata__"]


def is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_tensors(source: str | os.PathLike, values: bool = True) -> RawFile:
    """A .safetensors or GGUF file, or a folder holding one safetensors file or a sharded set with its index.

    Nothing is read but headers: tensors are mapped and paged in when they are first touched. Without
    `values` all but the small ones are on the meta device: shapes and types, whatever the file's size.

    Raises WeightsError when it is none, is damaged, or lacks shards.
    """
    path = Path(source)
    if not path.exists():
        raise WeightsError(f"{path} does not exist: check the name, or choose another file.")
    if not path.is_dir() and not path.is_file():
        raise WeightsError(f"{path} is no file and no folder: choose a .safetensors file.")
    raw = RawFile(path.name, {})
    if path.is_file() and is_gguf(path):
        raw.tensors, raw.formats, raw.metadata = read_gguf(path, path.name, values, SMALL)
        return raw
    for part in shards(path) if path.is_dir() else [path]:
        name = part.name if part == path else f"{path.name}/{part.name}"
        header = read_header(part, name)
        try:
            with safe_open(part, framework="pt") as file:
                raw.metadata |= file.metadata() or {}
                for key in file.keys():
                    start, end = header[key]["data_offsets"]
                    if values or end - start <= SMALL:
                        raw.tensors[key] = file.get_tensor(key)
                    else:
                        dtype = DTYPES.get(header[key]["dtype"], torch.uint8)
                        raw.tensors[key] = torch.empty(header[key]["shape"], dtype=dtype, device="meta")
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{name} cannot be read as safetensors: {str(error)[:200]}. {AGAIN}"
            ) from error
    return raw


def folder_of(source: Path, kind: str) -> Path:
    """Where one part lies in a folder: the folder itself, or its only one for this part, up to two deeper.

    Whole models in diffusers' layout have a folder for each part.
    """
    if kind not in PART_FOLDERS or not source.is_dir() or has_weights(source):
        return source
    for pattern in (PART_FOLDERS[kind], f"*/{PART_FOLDERS[kind]}"):
        found = [folder for folder in source.glob(pattern) if any(folder.glob("*.safetensors"))]
        if len(found) == 1:
            return found[0]
    return source


def lacks(source: Path, kind: str) -> bool:
    """Whether it is the folder of a whole model that has none for this part."""
    folder = folder_of(source, kind)
    whole = any(folder_of(source, other) != source for other in PART_FOLDERS)
    return whole and folder == source and source.is_dir() and not has_weights(source)


def has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob(INDEX))


def _without_variants(files: list[Path]) -> list[Path]:
    """Of model.safetensors and model.fp16.safetensors the first, where these are all."""
    plain = [file for file in files if "." not in file.stem]
    return plain if {file.stem.split(".")[0] for file in files} == {file.stem for file in plain} else files


def shards(folder: Path) -> list[Path]:
    """The files of a folder that holds one part of a model.

    Raises WeightsError when there are several and no index, or an index and not all of them.
    """
    indexes = sorted(folder.glob(INDEX), key=lambda path: (len(path.name), path.name))  # no variant first
    files = _without_variants(sorted(folder.glob("*.safetensors")))
    if len(files) == 1 and (not indexes or (VARIANT.search(indexes[0].name) and "." not in files[0].stem)):
        return files
    if not indexes:
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
        if pickles and not files:
            raise WeightsError(
                f"{folder} holds {some(pickles)}, and no .safetensors file. Pickles are never opened because "
                "they can run code: download the .safetensors files of the same model."
            )
        raise WeightsError(f"{folder} holds {len(files)} .safetensors files and no index: choose one file")
    try:
        index = json.loads(indexes[0].read_text(encoding="utf-8"))
        names = sorted({str(name) for name in index["weight_map"].values()})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise WeightsError(
            f"{indexes[0]} cannot be read: expected JSON with a weight_map of tensors to files. Download it "
            "again."
        ) from None
    if any(Path(name).name != name for name in names):
        raise WeightsError(
            f"{indexes[0]} names files outside its folder: {some(names)}. Download the folder again."
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise WeightsError(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {some(missing)}. Download them."
        )
    return [folder / name for name in names]
