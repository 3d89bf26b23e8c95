"""One part of the model as a file holds it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import S3DiTConfig
from . import layouts
from .errors import some
from .quantised import Formats, dequantise_all

SHORT = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    **{name: "fp8" for name in layouts.FP8},
    "int8_tensorwise": "int8",
    "convrot_w4a4": "int4",
    "asym_w4a8_int8": "int4",
}


@dataclass
class Checkpoint:
    """One part of the model as it lies in a file: `tensors` and `formats` under our names.

    preferences: which attention its blocks are to have in a newer ComfyUI, for the host to read.
    left_over: names in the file of tensors that nothing here uses.
    """

    name: str
    kind: str
    config: Any
    tensors: dict[str, Tensor]
    formats: Formats = field(default_factory=dict)
    prefix: str = ""
    preferences: dict[str, Tensor] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """The type of most parameters that are not quantised; bfloat16 when all are, and for GGUF."""
        sizes: Counter = Counter()
        for _, value in self._plain_weights():
            if value.dtype not in layouts.FP8.values():
                sizes[value.dtype] += value.numel()
        if not sizes or all(spec["format"] == "gguf" for spec in self.formats.values()) and self.formats:
            return torch.bfloat16  # GGUF keeps in float32 what it does not quantise, whatever it was
        return sizes.most_common(1)[0][0]

    def _plain_weights(self) -> Iterator[tuple[str, Tensor]]:
        for key, value in self.tensors.items():
            layer, _, end = key.rpartition(".")
            if end not in layouts.COMPANIONS and not (end == "weight" and layer in self.formats):
                yield key, value

    @property
    def parameters(self) -> int:
        shapes = (
            layouts.shape_of(self.tensors[f"{layer}.weight"], spec) for layer, spec in self.formats.items()
        )
        return sum(map(math.prod, shapes)) + sum(value.numel() for _, value in self._plain_weights())

    @property
    def bytes(self) -> int:
        """Of all its tensors as they are stored."""
        return sum(value.nbytes for value in self.tensors.values())

    def bytes_in(self, layer: str, dtype: torch.dtype | None = None) -> int:
        """Of a quantised layer as it is stored, or of its matrix in dtype."""
        if dtype is None:
            return sum(part.nbytes for part in layouts.parts_of(self.tensors, layer).values())
        return (
            math.prod(layouts.shape_of(self.tensors[f"{layer}.weight"], self.formats[layer])) * dtype.itemsize
        )

    @property
    def kept(self) -> list[str]:
        """Matrices that are left in a type of two bytes or more, where others are quantised."""
        found = [key for key, value in self._plain_weights() if value.ndim == 2 and value.itemsize > 1]
        return [key for key in found if key.endswith(".weight")] if self.formats else []

    @property
    def precision(self) -> str:
        """How most values of its matrices are stored, in words of file names: bf16, fp8, int8, Q4_K ..."""
        sizes: Counter = Counter()
        for layer, spec in self.formats.items():
            shape = layouts.shape_of(self.tensors[f"{layer}.weight"], spec)
            sizes[spec.get("type", spec["format"])] += math.prod(shape)
        for _, value in self._plain_weights():
            if value.ndim == 2:
                sizes[str(value.dtype).removeprefix("torch.")] += value.numel()
        stored = sizes.most_common(1)[0][0] if sizes else "bfloat16"
        return SHORT.get(stored, stored)

    @property
    def fits_float16(self) -> bool:
        """Whether a transformer's activations stay in float16's range: so for Turbo, not for Base.

        ComfyUI's measure, the spread of one norm's weights, tells the two apart.
        """
        return is_narrow(self.tensors[telling_norm(self.config)])

    @property
    def variant(self) -> str:
        """Of a transformer: omni by its keys, else Turbo or Base by that measure."""
        return variant_of(self.config, self.tensors[telling_norm(self.config)])

    @property
    def _matrix_dtypes(self) -> set[torch.dtype]:
        return {value.dtype for _, value in self._plain_weights() if value.ndim == 2}

    @property
    def summary(self) -> str:
        """One line for people: name, size, precision."""
        millions = self.parameters / 1e6
        size = f"{millions / 1e3:.2f} B" if millions >= 1e3 else f"{millions:.1f} M"
        about = f", {self.config.summary}" if self.kind == "control" else ""
        layers = f"{len(self.formats)} layers" if self.formats else "matrices"
        stored = f", {layers} in {' and '.join(self.stored_as)}" if self.stored_as else ""
        if kept := self.kept:
            types = sorted({str(self.tensors[key].dtype).removeprefix("torch.") for key in kept})
            stored += f", {len(kept)} in {' and '.join(types)}"
        if self.left_over:
            about += f", {len(self.left_over)} tensors left over ({some(self.left_over, 2)})"
        return f"{self.name}: {size} parameters, {str(self.dtype).removeprefix('torch.')}{stored}{about}"

    @property
    def stored_as(self) -> list[str]:
        """The formats of what is not in a plain type; blocks of ggml by their own names."""
        plain_fp8 = {name for name, dtype in layouts.FP8.items() if dtype in self._matrix_dtypes}
        return sorted({spec.get("type", spec["format"]) for spec in self.formats.values()} | plain_fp8)

    def plain(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """State dict without quantisation; dtype None keeps each tensor's own, fp8 becoming bfloat16."""
        tensors = dequantise_all(self.tensors, self.formats, dtype or torch.bfloat16)
        fallback = torch.bfloat16
        return {
            k: v.to(dtype or (fallback if v.dtype in layouts.FP8.values() else v.dtype))
            for k, v in tensors.items()
        }


def telling_norm(config: S3DiTConfig) -> str:
    """The name of the norm whose weights tell Turbo and Base apart."""
    return f"layers.{max(0, config.n_layers - 2)}.ffn_norm1.weight"


def is_narrow(norm: Tensor) -> bool:
    return float(norm.float().std(unbiased=False)) < 0.42


def variant_of(config: S3DiTConfig, norm: Tensor) -> str:
    """Which Z-Image a transformer is. norm: the weights of `telling_norm`."""
    if config.siglip_feat_dim is not None:
        return "omni"
    return "Turbo" if is_narrow(norm) else "Base"
