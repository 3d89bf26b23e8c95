"""A safetensors file with the names and shapes of a transformer, full of random bfloat16."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from zimage_core import S3DiT, S3DiTConfig

BLOCK = 2**25 + 17  # values that are drawn once; tensors begin anywhere in them


def shapes(config: S3DiTConfig) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in S3DiT(config, device="meta").state_dict().items()}


def size(config: S3DiTConfig) -> int:
    """Bytes of its tensors."""
    return sum(2 * shape.numel() for shape in shapes(config).values())


def write(path: Path, config: S3DiTConfig, seed: int = 1) -> Path:
    """Synced to the disk, so that the system can forget it."""
    header, place = {}, 0
    for name, shape in shapes(config).items():
        end = place + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(BLOCK, generator=generator).mul_(0.02).bfloat16()
    block = memoryview(values.view(torch.uint8).numpy())
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start, end in (entry["data_offsets"] for entry in header.values()):
            while start < end:
                at = start % len(block)
                count = min(end - start, len(block) - at)
                file.write(block[at : at + count])
                start += count
        file.flush()
        os.fsync(file.fileno())
    return path
