"""Files of the published sizes and tensor names that take no room: their matrices are holes on the disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from zimage_core.config import AutoencoderConfig, Qwen3Config, S3DiTConfig
from zimage_core.model.autoencoder import AutoencoderKL
from zimage_core.model.s3dit import S3DiT
from zimage_core.model.text_encoder import Qwen3TextEncoder

FORMATS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}


def transformer(**changes: object) -> nn.Module:
    return S3DiT(S3DiTConfig(**changes), device="meta")


def text_encoder() -> nn.Module:
    return Qwen3TextEncoder(Qwen3Config(), device="meta", language_model=True)


def autoencoder() -> nn.Module:
    return AutoencoderKL(AutoencoderConfig(), device="meta")


def write(path: Path, network: nn.Module, dtype: torch.dtype, spread: float = 0.0) -> Path:
    """Vectors alternate between 1 - spread and 1 + spread in bfloat16; by that Base is told from Turbo."""
    header, place, vectors = {}, 0, {}
    for name, value in network.state_dict().items():
        kept = torch.bfloat16 if value.ndim == 1 else dtype
        size = value.numel() * kept.itemsize
        header[name] = {
            "dtype": FORMATS[kept],
            "shape": list(value.shape),
            "data_offsets": [place, place + size],
        }
        if value.ndim == 1:
            numbers = 1 + spread * (2 * (torch.arange(value.numel()) % 2) - 1.0)
            vectors[place] = numbers.bfloat16().view(torch.uint8).numpy().tobytes()
        place += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start, data in vectors.items():
            file.seek(8 + len(text) + start)
            file.write(data)
        file.truncate(8 + len(text) + place)
    return path
