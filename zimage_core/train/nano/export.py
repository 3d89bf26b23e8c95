"""Trained parts -> the files of `models/nano`, in the formats that the real model's files have."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...config import NanoConfig
from ...model.autoencoder import AutoencoderKL
from ...model.s3dit import S3DiT
from ...model.text_encoder import Qwen3TextEncoder
from ...model.vision import VisionEncoder
from ...weights.quantised import quantise_fp8

# the large matrices of the blocks; embedders, modulation, norms, pads and the last layer stay in bf16
FP8_LAYERS = (
    ".attention.qkv.",
    ".attention.out.",
    ".feed_forward.w1.",
    ".feed_forward.w2.",
    ".feed_forward.w3.",
)
LABEL = {"format": "pt", "license": "Apache-2.0"}  # metadata of every file


def scaled_fp8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The old scaled layout: a `scaled_fp8` marker, and per layer an fp8 weight with its `scale_weight`."""
    out = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for key, weight in weights.items():
        if any(part in key for part in FP8_LAYERS) and key.endswith(".weight"):
            out[key], out[key.removesuffix("weight") + "scale_weight"] = quantise_fp8(weight)
        else:
            out[key] = weight.to(torch.bfloat16)
    return out


def fit_preview(latents: Tensor, images: Tensor) -> tuple[list[list[float]], list[float]]:
    """Least squares from scaled latents to pictures: 16 rows of RGB, and a bias.

    latents: [N,16,h,w]; pictures: [N,3,8h,8w] in [-1,1].
    """
    small = torch.nn.functional.adaptive_avg_pool2d(images, latents.shape[-2:])
    x = latents.permute(0, 2, 3, 1).flatten(0, 2)
    y = small.permute(0, 2, 3, 1).flatten(0, 2)
    ones = torch.ones(len(x), 1)
    solution = torch.linalg.lstsq(torch.cat((x, ones), 1).double(), y.double()).solution
    rows = [[round(v, 4) for v in row] for row in solution.tolist()]
    return rows[:-1], rows[-1]


def contiguous(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", dtype).contiguous() for k, v in weights.items()}


def export(
    folder: Path,
    config: NanoConfig,
    transformer: S3DiT,
    text_encoder: Qwen3TextEncoder,
    autoencoder: AutoencoderKL,
    vision: VisionEncoder,
    tokenizer: Path,
    preview: tuple[list[list[float]], list[float]],
) -> int:
    """Write every file but the card; returns their size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().cpu().contiguous() for k, v in transformer.state_dict().items()}
    save_file(scaled_fp8(weights), folder / "transformer.safetensors", LABEL)
    save_file(
        contiguous(text_encoder.state_dict(), torch.bfloat16), folder / "text_encoder.safetensors", LABEL
    )
    save_file(contiguous(autoencoder.state_dict(), torch.bfloat16), folder / "autoencoder.safetensors", LABEL)
    save_file(contiguous(vision.state_dict(), torch.bfloat16), folder / "vision.safetensors", LABEL)
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    factors, bias = preview
    description = {
        "name": "nano",
        "resolution": config.resolution,
        "transformer": dataclasses.asdict(config.transformer),
        "text_encoder": dataclasses.asdict(config.text_encoder),
        "autoencoder": dataclasses.asdict(config.autoencoder),
        "vision": dataclasses.asdict(config.vision),
        "latent_rgb_factors": factors,
        "latent_rgb_bias": bias,
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
