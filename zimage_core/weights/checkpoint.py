"""A file of any dialect -> one part of the model under our names, with its configuration."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..conditions.control import ControlNet
from ..model.autoencoder import AutoencoderKL
from ..model.s3dit import S3DiT
from ..model.text_encoder import Qwen3TextEncoder
from ..model.vision import VisionEncoder
from . import detect, keys, quantised
from .errors import WeightsError
from .files import RawFile, read_tensors

Source = str | os.PathLike | Mapping[str, Tensor]

LABELS = {
    "transformer": "Z-Image transformer",
    "text_encoder": "text encoder",
    "autoencoder": "autoencoder (VAE)",
    "vision": "vision encoder",
    "control": "Z-Image ControlNet",
}


@dataclass
class Checkpoint:
    """One part of the model as it lies in a file: `tensors` under our names, fp8 layers listed in
    `formats`.
    """

    name: str
    kind: str
    config: Any
    tensors: dict[str, Tensor]
    formats: quantised.Formats = field(default_factory=dict)
    prefix: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The type that holds most of the parameters that are not fp8; bfloat16 when all are."""
        sizes: Counter = Counter()
        for key, value in self.tensors.items():
            if (
                value.dtype not in quantised.FP8.values()
                and key.rpartition(".")[2] not in quantised.COMPANIONS
            ):
                sizes[value.dtype] += value.numel()
        return sizes.most_common(1)[0][0] if sizes else torch.bfloat16

    @property
    def parameters(self) -> int:
        companions = quantised.COMPANIONS
        return sum(v.numel() for k, v in self.tensors.items() if k.rpartition(".")[2] not in companions)

    @property
    def fits_float16(self) -> bool:
        """Whether a transformer's activations stay in float16's range: so for Turbo, not for Base. ComfyUI's
        measure, the spread of one norm's weights, tells the two apart.
        """
        norm = self.tensors[f"layers.{max(0, self.config.n_layers - 2)}.ffn_norm1.weight"]
        return float(norm.float().std(unbiased=False)) < 0.42

    @property
    def summary(self) -> str:
        """One line for people: name, size, precision."""
        millions = self.parameters / 1e6
        size = f"{millions / 1e3:.2f} B" if millions >= 1e3 else f"{millions:.1f} M"
        formats = sorted({spec["format"] for spec in self.formats.values()})
        about = f", {self.config.summary}" if self.kind == "control" else ""
        fp8 = f", {len(self.formats)} layers in {' and '.join(formats)}" if formats else ""
        return f"{self.name}: {size} parameters, {str(self.dtype).removeprefix('torch.')}{fp8}{about}"

    def plain(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """State dict without quantisation; dtype None keeps each tensor's own, fp8 becoming bfloat16."""
        tensors = quantised.dequantise_all(self.tensors, self.formats, dtype or torch.bfloat16)
        fallback = torch.bfloat16
        return {
            k: v.to(dtype or (fallback if v.dtype in quantised.FP8.values() else v.dtype))
            for k, v in tensors.items()
        }


def _raw(source: Source, values: bool) -> RawFile:
    if isinstance(source, Mapping):
        return RawFile("the given tensors", dict(source))
    return read_tensors(Path(source), values)


def read_transformer(source: Source, values: bool = True) -> Checkpoint:
    """values: False checks and describes a file by its header, with tensors that hold nothing.

    Raises WeightsError when the file is not a Z-Image transformer, is incomplete, or has tensors of wrong
    shape.
    """
    raw, tensors, formats, prefix = _blocks(source, "transformer", values)
    for pad in ("x_pad_token", "cap_pad_token", "siglip_pad_token"):  # GGUF-born files hold them flat
        if pad in tensors:
            tensors[pad] = tensors[pad].reshape(1, -1)
    config = detect.transformer_config(raw.name, tensors)
    checkpoint = Checkpoint(raw.name, "transformer", config, tensors, formats, prefix)
    _check(checkpoint, S3DiT(config, device="meta"))
    return checkpoint


def read_control(source: Source, values: bool = True) -> Checkpoint:
    """A Z-Image-Fun-Controlnet-Union of any version; what else a file holds is left out.

    Raises WeightsError when the file is no control, is incomplete, or has tensors that no version has.
    """
    raw, tensors, formats, prefix = _blocks(source, "control", values)
    tensors = {k: v for k, v in tensors.items() if k.startswith("control_")}
    config = detect.control_config(raw.name, tensors)
    if config.routing == "layers":  # version 2.0 brings a refiner that it was trained without
        tensors = {k: v for k, v in tensors.items() if not k.startswith("control_noise_refiner.")}
    formats = {k: v for k, v in formats.items() if f"{k}.weight" in tensors}
    checkpoint = Checkpoint(raw.name, "control", config, tensors, formats, prefix)
    network = ControlNet(config, device="meta")
    _check(checkpoint, network)
    known = network.state_dict().keys()
    unknown = [k for k in tensors if k not in known and k.rpartition(".")[2] not in quantised.COMPANIONS]
    if unknown:
        raise WeightsError(
            f"{raw.name} has {len(unknown)} control tensors that no known version has: {_some(unknown)}."
        )
    return checkpoint


def read_text_encoder(source: Source, values: bool = True) -> Checkpoint:
    raw, tensors, prefix = _part(source, "text_encoder", values)
    tensors, formats = quantised.normalise(raw.name, tensors, raw.metadata, prefix)
    tensors = keys.text_encoder_to_ours(tensors)
    formats = {k if k.startswith("model.") else f"model.{k}": v for k, v in formats.items()}
    config = detect.text_encoder_config(raw.name, tensors)
    checkpoint = Checkpoint(raw.name, "text_encoder", config, tensors, formats, prefix)
    _check(checkpoint, Qwen3TextEncoder(config, device="meta", language_model="model.norm.weight" in tensors))
    return checkpoint


def read_autoencoder(source: Source, values: bool = True) -> Checkpoint:
    raw, tensors, prefix = _part(source, "autoencoder", values)
    tensors = keys.autoencoder_to_ours(tensors)
    config = detect.autoencoder_config(raw.name, tensors)
    checkpoint = Checkpoint(raw.name, "autoencoder", config, tensors, {}, prefix)
    _check(checkpoint, AutoencoderKL(config, device="meta"))
    return checkpoint


def read_vision_encoder(source: Source, values: bool = True) -> Checkpoint:
    raw, tensors, prefix = _part(source, "vision", values)
    tensors = {f"vision_model.{k}": v for k, v in tensors.items()}
    config = detect.vision_encoder_config(raw.name, tensors)
    checkpoint = Checkpoint(raw.name, "vision", config, tensors, {}, prefix)
    _check(checkpoint, VisionEncoder(config, device="meta"))
    return checkpoint


READERS = {
    "transformer": read_transformer,
    "text_encoder": read_text_encoder,
    "autoencoder": read_autoencoder,
    "vision": read_vision_encoder,
    "control": read_control,
}


def _blocks(
    source: Source, kind: str, values: bool
) -> tuple[RawFile, dict[str, Tensor], quantised.Formats, str]:
    """The tensors of a part made of S3-DiT blocks under our names, q, k and v fused, and its fp8 layers."""
    raw, tensors, prefix = _part(source, kind, values)
    tensors, formats = quantised.normalise(raw.name, tensors, raw.metadata, prefix)
    tensors = keys.transformer_to_ours(tensors)
    formats = {keys.rename(layer, keys.TRANSFORMER): spec for layer, spec in formats.items()}
    quantised.fuse_quantised_qkv(tensors, formats, keys.FUSED)
    return raw, keys.fuse_qkv(tensors), formats, prefix


def _part(source: Source, kind: str, values: bool) -> tuple[RawFile, dict[str, Tensor], str]:
    raw = _raw(source, values)
    tensors, prefix = keys.strip_prefix(raw.tensors, kind)
    if not tensors:
        raise WeightsError(
            f"{raw.name} holds no {LABELS[kind]}: {what_is(raw.tensors)}. Choose a file that has one."
        )
    return raw, tensors, prefix


def _check(checkpoint: Checkpoint, model: nn.Module) -> None:
    expected = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    found = checkpoint.tensors
    missing = [k for k in expected if k not in found]
    if missing:
        raise WeightsError(
            f"{checkpoint.name} lacks {len(missing)} of {len(expected)} tensors of the "
            f"{LABELS[checkpoint.kind]}: "
            f"{_some(missing)}. It is incomplete or of another model."
        )
    wrong = [
        f"{k} {tuple(found[k].shape)}, expected {s}"
        for k, s in expected.items()
        if tuple(found[k].shape) != s
    ]
    if wrong:
        raise WeightsError(f"{checkpoint.name} has {len(wrong)} tensors of the wrong shape: {_some(wrong)}.")


def _some(items: list[str], count: int = 3) -> str:
    return "; ".join(items[:count]) + (f"; and {len(items) - count} more" if len(items) > count else "")


TELLTALES = (  # key fragment -> what a file with it is
    ("lora_", "it is a LoRA"),
    (".lokr_", "it is a LoKr adapter"),
    (".hada_", "it is a LoHa adapter"),
    ("input_blocks.", "it is a Stable Diffusion UNet"),
    ("double_blocks.", "it is a Flux-family transformer"),
    ("joint_blocks.", "it is Stable Diffusion 3"),
)


def what_is(tensors: Mapping[str, Tensor]) -> str:
    """One sentence part about a file's content, for messages."""
    for kind, label in LABELS.items():
        if keys.strip_prefix(tensors, kind)[0]:
            return f"it is a {label}"
    for fragment, text in TELLTALES:
        if any(fragment in key for key in tensors):
            return text
    return f"its {len(tensors)} tensors start with {_some(sorted(tensors)) or 'nothing'}"


def _build(model: nn.Module, state: dict[str, Tensor], device: Any) -> nn.Module:
    wanted = model.state_dict().keys()
    state = {k: v.to(device) if device is not None else v for k, v in state.items() if k in wanted}
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def load_transformer(source: Source, device: Any = None, dtype: torch.dtype | None = None) -> S3DiT:
    """An S3DiT from a path or a dict in any dialect. dtype None keeps the file's; fp8 is dequantised."""
    checkpoint = read_transformer(source)
    dtype = dtype or checkpoint.dtype
    return _build(S3DiT(checkpoint.config, device="meta", dtype=dtype), checkpoint.plain(dtype), device)


def load_control(source: Source, device: Any = None, dtype: torch.dtype | None = None) -> ControlNet:
    """A ControlNet from a path or a dict. dtype None keeps the file's; fp8 is dequantised."""
    checkpoint = read_control(source)
    dtype = dtype or checkpoint.dtype
    return _build(ControlNet(checkpoint.config, device="meta", dtype=dtype), checkpoint.plain(dtype), device)


def load_text_encoder(
    source: Source, device: Any = None, dtype: torch.dtype | None = None, language_model: bool = False
) -> Qwen3TextEncoder:
    """A Qwen3TextEncoder; without language_model its last layer and final norm are left in the file."""
    checkpoint = read_text_encoder(source)
    dtype = dtype or checkpoint.dtype
    model = Qwen3TextEncoder(checkpoint.config, device="meta", dtype=dtype, language_model=language_model)
    return _build(model, checkpoint.plain(dtype), device)


def load_autoencoder(source: Source, device: Any = None, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The Flux-style autoencoder."""
    checkpoint = read_autoencoder(source)
    dtype = dtype or checkpoint.dtype
    return _build(
        AutoencoderKL(checkpoint.config, device="meta", dtype=dtype), checkpoint.plain(dtype), device
    )


def load_vision_encoder(
    source: Source, device: Any = None, dtype: torch.dtype | None = None
) -> VisionEncoder:
    """SigLIP 2 from its own file, with or without its text half, or a folder of a diffusers model."""
    checkpoint = read_vision_encoder(source)
    dtype = dtype or checkpoint.dtype
    return _build(
        VisionEncoder(checkpoint.config, device="meta", dtype=dtype), checkpoint.plain(dtype), device
    )


def describe(source: Source) -> dict[str, dict[str, Any]]:
    """What a file or folder holds: {kind: {parameters, dtype, quantised_layers, formats, config}} for each
    part in it.

    Raises WeightsError when it holds nothing of Z-Image.
    """
    raw = _raw(source, values=False)
    parts = {}
    for kind, reader in READERS.items():
        if keys.strip_prefix(raw.tensors, kind)[0]:
            part = reader(source, values=False)
            parts[kind] = {
                "parameters": part.parameters,
                "dtype": str(part.dtype).removeprefix("torch."),
                "quantised_layers": len(part.formats),
                "formats": sorted({spec["format"] for spec in part.formats.values()}),
                "config": part.config,
            }
    if not parts:
        raise WeightsError(f"{raw.name} holds nothing of Z-Image: {what_is(raw.tensors)}.")
    return parts
