"""LoRA files as trainers write them, by hand, and what they make of a model's weights in float64."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

THIRDS = ("to_q", "to_k", "to_v")
THEIRS = ((".attention.out", ".attention.to_out.0"), ("x_embedder", "all_x_embedder.2-1"))
FINAL = ("final_layer", "all_final_layer.2-1")
HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
SCALES = (1.0, 0.5, 2.0, 0.3)  # alpha over rank


class Dialect(NamedTuple):
    """How a trainer spells a key: before the layer's path, the path, and the names of the parts."""

    prefix: str
    down: str = ".lora_A.weight"
    up: str = ".lora_B.weight"
    flat: bool = False  # underscores for dots in the path
    fused: bool = False  # the names of ComfyUI's single files, with qkv in one
    alpha: bool = False  # written as tensors

    def key(self, path: str) -> str:
        return self.prefix + (path.replace(".", "_") if self.flat else path)


KOHYA = (".lora_down.weight", ".lora_up.weight")
DIALECTS = {
    "diffusers": Dialect("transformer."),
    "ai-toolkit": Dialect("diffusion_model."),
    "DiffSynth": Dialect("", ".lora_A.default.weight", ".lora_B.default.weight"),
    "bare": Dialect(""),
    "peft": Dialect("base_model.model."),
    "peft with an adapter's name": Dialect(
        "base_model.model.", ".lora_A.zimage.weight", ".lora_B.zimage.weight"
    ),
    "peft around a pipeline": Dialect("transformer.base_model.model."),
    "musubi": Dialect("lora_unet_", *KOHYA, flat=True, alpha=True),
    "musubi for ComfyUI": Dialect("lora_unet_", *KOHYA, flat=True, fused=True, alpha=True),
    "OneTrainer": Dialect("transformer.", *KOHYA, alpha=True),
    "OneTrainer, flat": Dialect("lora_transformer_", *KOHYA, flat=True, alpha=True),
    "OneTrainer, dotted parts": Dialect(
        "diffusion_model.", ".lora.down.weight", ".lora.up.weight", alpha=True
    ),
    "OneTrainer, fused": Dialect("", ".lora.down.weight", ".lora.up.weight", fused=True),
    "old diffusers": Dialect("transformer.", "_lora.down.weight", "_lora.up.weight"),
    "oldest diffusers": Dialect("unet.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    "LyCORIS": Dialect("lycoris_", *KOHYA, flat=True, alpha=True),
    "ComfyUI's trainer": Dialect("diffusion_model.", *KOHYA, fused=True, alpha=True),
    "fused": Dialect("diffusion_model.", fused=True),
    "names of a checkpoint": Dialect("model.diffusion_model.", fused=True),
    "fused, as diffusers prefixes": Dialect("transformer.", fused=True),
    "compiled": Dialect("transformer._orig_mod."),
}


@dataclass
class Change:
    """Of some rows of a parameter: its tensors by part, and what they mean."""

    parameter: str
    start: int
    rows: int
    path: str  # of the layer, as the dialect names it
    parts: dict[str, Tensor]
    alpha: float | None
    added: Tensor  # in float64
    magnitudes: Tensor | None = None  # of a DoRA

    def merged(self, weight: Tensor, strength: float) -> Tensor:
        """The rows in float64: W + s dW, or with magnitudes W + s (m (W + dW) / |W + dW| - W)."""
        if self.magnitudes is None:
            return weight + strength * self.added
        changed = weight + self.added
        axis = 1 if self.magnitudes.shape[0] == len(weight) else 0
        turned = changed * self.magnitudes.double() / changed.norm(dim=axis, keepdim=True)
        return weight + strength * (turned - weight)


@dataclass
class Written:
    tensors: dict[str, Tensor]
    changes: list[Change]
    metadata: dict[str, str] = field(default_factory=dict)

    def merged(self, weights: Mapping[str, Tensor], strength: float = 1.0) -> dict[str, Tensor]:
        """All weights in float64."""
        out = {key: value.double().clone() for key, value in weights.items()}
        for change in self.changes:
            rows = out[change.parameter][change.start : change.start + change.rows]
            rows.copy_(change.merged(rows.clone(), strength))
        return out


def layers(weights: Mapping[str, Tensor], dialect: Dialect) -> Iterator[tuple[str, int, int, str]]:
    """(parameter, first row, rows, path) of every matrix, qkv as one or as three."""
    for key, value in weights.items():
        path = key.removesuffix(".weight")
        if value.ndim != 2 or path == key:
            continue
        if dialect.fused:
            yield key, 0, len(value), path
        elif path.endswith(".qkv"):
            for i, third in enumerate(THIRDS):
                yield key, i * value.shape[1], value.shape[1], f"{path.removesuffix('qkv')}{third}"
        else:
            for ours, theirs in THEIRS if "attention" in path or path == "x_embedder" else (FINAL,):
                path = path.replace(ours, theirs)
            yield key, 0, len(value), path


Make = Callable[[int, int, int, float, random.Random], tuple[dict[str, Tensor], float | None, Tensor]]


def normal(*shape: int, dice: random.Random) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(dice.randrange(2**31)))


def lora(rows: int, columns: int, rank: int, scale: float, dice: random.Random):
    down, up = normal(rank, columns, dice=dice) / columns**0.5, normal(rows, rank, dice=dice) / rank
    return {"down": down, "up": up}, scale * rank, scale * (up.double() @ down.double())


def loha(rows: int, columns: int, rank: int, scale: float, dice: random.Random):
    shapes = ((rows, rank), (rank, columns)) * 2
    parts = {name: normal(*shape, dice=dice) / rank for name, shape in zip(HADA, shapes, strict=True)}
    a, b, c, d = (part.double() for part in parts.values())
    return parts, scale * rank, scale * (a @ b) * (c @ d)


def lokr(rows: int, columns: int, rank: int, scale: float, dice: random.Random, split: str = "2"):
    """split: which of the two matrices are products themselves."""
    small, wide = (4, 2) if rows % 4 == 0 and columns % 2 == 0 else (1, 1)
    sizes = {"1": (small, wide), "2": (rows // small, columns // wide)}
    parts, whole = {}, {}
    for number, (high, broad) in sizes.items():
        if number in split:
            a, b = normal(high, rank, dice=dice) / rank, normal(rank, broad, dice=dice)
            parts |= {f"lokr_w{number}_a": a, f"lokr_w{number}_b": b}
            whole[number] = a.double() @ b.double()
        else:
            parts[f"lokr_w{number}"] = normal(high, broad, dice=dice)
            whole[number] = parts[f"lokr_w{number}"].double()
    scale = scale if split else 1.0  # two whole matrices are as strong as they are, whatever alpha says
    return parts, scale * rank, scale * torch.kron(whole["1"], whole["2"])


def difference(rows: int, columns: int, rank: int, scale: float, dice: random.Random):
    value = normal(rows, columns, dice=dice)
    return {"diff": value}, None, value.double()


KINDS: dict[str, Make] = {
    "lora": lora,
    "loha": loha,
    "lokr": lokr,
    "lokr, whole": functools.partial(lokr, split=""),
    "lokr, two products": functools.partial(lokr, split="12"),
    "difference": difference,
}


def write(
    weights: Mapping[str, Tensor],
    dialect: Dialect,
    seed: int,
    kind: str = "lora",
    dora: str | None = None,
    dtype: torch.dtype = torch.float32,
    scales: tuple[float, ...] = SCALES,
    size: float = 0.5,
) -> Written:
    """A change of every matrix, `size` times as large as it, of ranks and alphas that differ.

    dora: "rows", "columns" or "vector" (peft's) for magnitudes beside it.
    """
    dice, tensors, changes = random.Random(seed), {}, []
    for number, (parameter, start, rows, path) in enumerate(layers(weights, dialect)):
        rank = 1 + dice.randrange(4)
        scale = scales[number % len(scales)] if dialect.alpha else 1.0
        weight = weights[parameter][start : start + rows].double()
        parts, alpha, added = KINDS[kind](rows, weight.shape[1], rank, scale, dice)
        first = next(iter(parts))  # the size of the product is that of each part
        factor = float(size * weight.norm() / added.norm())
        parts[first] = (parts[first] * factor).to(dtype)
        parts = {name: part.to(dtype) for name, part in parts.items()}
        added = _added(parts, alpha if dialect.alpha else None)
        magnitudes = None
        if dora:
            axis = 0 if dora == "columns" else 1
            magnitudes = (weight.norm(dim=axis, keepdim=True) * 1.1).to(dtype)
        changes.append(Change(parameter, start, rows, path, parts, alpha, added, magnitudes))
        key = dialect.key(path)
        names = {"down": dialect.down, "up": dialect.up}
        tensors |= {key + names.get(name, f".{name}"): part for name, part in parts.items()}
        if dialect.alpha and alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        if dora == "vector":
            tensors[f"{key}.lora_magnitude_vector.weight"] = magnitudes.flatten()
        elif dora:
            tensors[f"{key}.dora_scale"] = magnitudes
    return Written(tensors, changes)


def _added(parts: Mapping[str, Tensor], alpha: float | None) -> Tensor:
    """In float64, from the parts as they were rounded."""
    part = {name: value.double() for name, value in parts.items()}
    if "diff" in part:
        return part["diff"]
    if "down" in part:
        return _scale(alpha, part["down"]) * (part["up"] @ part["down"])
    if "hada_w1_a" in part:
        a, b, c, d = (part[name] for name in HADA)
        return _scale(alpha, b) * (a @ b) * (c @ d)
    found = [part.get(f"lokr_w{n}", None) for n in (1, 2)]
    downs = [part[f"lokr_w{n}_b"] for n in (2, 1) if f"lokr_w{n}_b" in part]
    whole = [part[f"lokr_w{n}_a"] @ part[f"lokr_w{n}_b"] if w is None else w for n, w in enumerate(found, 1)]
    return (_scale(alpha, downs[0]) if downs else 1.0) * torch.kron(*whole)


def _scale(alpha: float | None, down: Tensor) -> float:
    return 1.0 if alpha is None else float(torch.tensor(alpha)) / len(down)


def applied(fit, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a fit's tensors make of the weights in float64, by the definition of each kind."""
    out = {key: value.double().clone() for key, value in weights.items()}
    for name, target in fit.targets.items():
        key, (_, start, rows) = target if isinstance(target, tuple) else (target, (0, 0, None))
        parts = {
            k[len(name) + 1 :].removesuffix(".weight"): v
            for k, v in fit.tensors.items()
            if k.startswith(f"{name}.")
        }
        parts = {{"lora_up": "up", "lora_down": "down"}.get(k, k): v for k, v in parts.items()}
        alpha = parts.pop("alpha", None)
        magnitudes, bias = parts.pop("dora_scale", None), parts.pop("diff_b", None)
        if bias is not None:
            out[f"{key.removesuffix('.weight')}.bias"] += bias.double()
        if parts:
            weight = out[key][start : None if rows is None else start + rows]
            added = _added(parts, None if alpha is None else float(alpha))
            weight.copy_(Change(key, 0, 0, name, parts, None, added, magnitudes).merged(weight.clone(), 1.0))
    return out
