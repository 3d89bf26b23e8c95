"""LoRA files of any trainer -> changes of our model's layers, in the names that ComfyUI's adapters take."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .errors import WeightsError, some
from .files import read_tensors
from .keys import FUSED
from .lora_keys import HADA, LOKR, WIDTHS, Place, place_of, places, split_key, why_not
from .lora_metadata import network_alpha, trigger_words
from .readers import Source, what_is
from .values import not_finite

AGAIN = "counted once: the file has this change under another name too"
HALF = "half of a change: its other part is missing"
NO_PRODUCT = "its parts do not fit each other"
ROUNDED = 1e-6  # strengths that differ by no more are one: alphas are written in float32
LORA = ("lora_up", "lora_down")
KINDS = {"lora": set(LORA), "hada": set(HADA), "lokr": set(LOKR), "diff": {"diff", "diff_b"}}
Target = str | tuple[str, tuple[int, int, int]]  # a parameter, or (it, (dimension, start, length))


@dataclass(frozen=True)
class LoraFile:
    """The tensors of a file under its own names, checked and in memory, and what its metadata says."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def trigger_words(self) -> list[str]:
        return trigger_words(self.metadata)


@dataclass
class LoraFit:
    """What of a file changes a model.

    tensors: `<name>.lora_up.weight` and so on, a change for each name; targets: {name: what it changes};
    used: names in the file; unused: {name in the file: a guess why}.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)


@dataclass
class _Change:
    """What a file says of one layer under one name. keys: {part: tensor's name in the file}."""

    path: str
    place: Place
    parts: dict[str, Tensor]
    keys: dict[str, str]
    alpha: float | None = None

    @property
    def rank(self) -> int:
        for part in ("lora_down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
            if part in self.parts and self.parts[part].ndim:
                return len(self.parts[part])
        return 0

    @property
    def scale(self) -> float:
        """Of a change by lora_up and lora_down."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def read_lora(source: Source, metadata: Mapping[str, str] | None = None) -> LoraFile:
    """A .safetensors file, or a dict of tensors with its metadata; the file may be written again afterwards.

    Raises WeightsError when it is no LoRA, is damaged, or holds NaN or infinity.
    """
    if isinstance(source, Mapping):
        name, tensors = "the given dict", dict(source)
    else:
        raw = read_tensors(source)
        name, tensors, metadata = Path(source).name, raw.tensors, raw.metadata
    if not any(split_key(key) for key in tensors):
        raise WeightsError(f"{name} holds no LoRA: {what_is(tensors)}. Choose a LoRA made for Z-Image.")
    if broken := list(not_finite(tensors)):
        raise WeightsError(
            f"{name} holds NaN or infinity in {some(broken)}: its training failed or it is damaged. "
            "Choose another file, or an earlier step of that training."
        )
    if not isinstance(source, Mapping):  # out of the mapped file
        tensors = {key: value.clone() for key, value in tensors.items()}
    return LoraFile(name, {key: _computable(value) for key, value in tensors.items()}, dict(metadata or {}))


def _computable(value: Tensor) -> Tensor:
    """The same values in a type that matrices are joined in; bf16 holds all of both kinds of fp8."""
    return value.bfloat16() if value.is_floating_point() and value.itemsize == 1 else value


def fit_lora(file: LoraFile, shapes: Mapping[str, torch.Size], has_text_encoder: bool = False) -> LoraFit:
    """The changes of a file that fit a model.

    shapes: of the model's parameters, under the names that targets shall have.

    Raises WeightsError for metadata that leaves open how strong the changes are.
    """
    known, fit = places(shapes), LoraFit()
    grouped: dict[str, dict[str, str]] = {}
    for key in file.tensors:
        path, part = split_key(key) or (key, "")
        if not part or place_of(path, known) is None:
            fit.unused[key] = why_not(key, known, has_text_encoder)
        elif grouped.setdefault(path, {}).setdefault(part, key) != key:
            fit.unused[key] = AGAIN
    taken: dict[Place, _Change] = {}
    for path, keys in grouped.items():
        for change in _changes(file, path, place_of(path, known), keys):
            problem = _problem(change, shapes)
            if problem is None and taken.setdefault(change.place, change) is not change:
                problem = AGAIN
            if problem is not None:
                fit.unused |= dict.fromkeys(change.keys.values(), problem)
    for place in [place for place in taken if place.rows and Place(place.layer) in taken]:
        fit.unused |= dict.fromkeys(taken.pop(place).keys.values(), AGAIN)
    fit.used = [key for change in taken.values() for key in change.keys.values()]
    for layer in dict.fromkeys(place.layer for place in taken):
        _put([change for place, change in taken.items() if place.layer == layer], shapes, fit)
    return fit


def _changes(file: LoraFile, path: str, place: Place, keys: dict[str, str]) -> Iterator[_Change]:
    """Of the weight, and of the bias, as far as there is one of each under this path."""
    parts = {part: file.tensors[key] for part, key in keys.items()}
    for part in LORA:  # may be written as convolutions of one point
        if part in parts and parts[part].ndim > 2:
            parts[part] = parts[part].flatten(1)
    change = _Change(path, place, parts, keys)
    alpha = parts.pop("alpha", None)
    if alpha is not None:
        change.alpha = float(alpha) if alpha.numel() == 1 else math.nan
    elif {"lora_up", *HADA, *LOKR} & parts.keys():
        converted = ".lora_B" in keys.get("lora_up", "")  # kohya's alpha is in the matrices then
        change.alpha = network_alpha(file.name, file.metadata, path, change.rank, not converted)
    for part in ("diff_b", "up_bias"):
        if part in parts:
            value = parts.pop(part)
            if part == "up_bias" and change.rank and change.scale != 1:
                value = value.float() * change.scale
            bias = Place(f"{place.layer}.bias", place.rows)
            yield _Change(path, bias, {"diff_b": value}, {part: keys.pop(part)})
    if keys:
        yield change


def _problem(change: _Change, shapes: Mapping[str, torch.Size]) -> str | None:
    """Why a change cannot be made, if so."""
    parts, place = change.parts, change.place
    if integers := [part.dtype for part in parts.values() if not part.is_floating_point()]:
        return f"in whole numbers ({str(integers[0]).removeprefix('torch.')}), expected bf16 or another float"
    if change.alpha is not None and not math.isfinite(change.alpha):
        return "its alpha is no single number"
    bias = "diff_b" in parts
    parameter = place.layer if bias else f"{place.layer}.weight"
    if parameter not in shapes or (bias and place.rows):
        return f"the layer has no {'bias' if bias else 'weight'} to change"
    wanted = _extent(place, shapes[parameter])[1]
    try:
        found = _shape(parts)
        if "dora_scale" in parts:
            _dora_scale(parts["dora_scale"], wanted)
    except _Misfit as misfit:
        return str(misfit)
    if found != wanted:
        whose = next(
            (WIDTHS[size] for size in found if size in WIDTHS and size not in wanted), "another model"
        )
        return f"it is {_sizes(found)} and the layer is {_sizes(wanted)}: of {whose}"
    return None


class _Misfit(Exception):
    """Why the parts of a change do not make one."""


def _shape(parts: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Of what a change adds. Raises _Misfit."""
    kinds = [kind for kind, names in KINDS.items() if not names.isdisjoint(parts)]
    if len(kinds) != 1:
        raise _Misfit("two kinds of change in one" if kinds else HALF)
    (kind,) = kinds
    if kind == "diff":
        return tuple(next(part for name, part in parts.items() if name in KINDS["diff"]).shape)
    if kind == "lora":
        return _product(parts, *LORA)
    first, second = (_whole_or_product(parts, f"{kind}_w{number}") for number in (1, 2))
    if kind == "lokr":
        return first[0] * second[0], first[1] * second[1]
    if first != second:
        raise _Misfit(NO_PRODUCT)
    return first


def _whole_or_product(parts: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in parts:
        return _product(parts, f"{name}_a", f"{name}_b")
    if parts[name].ndim != 2:
        raise _Misfit(NO_PRODUCT)
    return tuple(parts[name].shape)


def _product(parts: Mapping[str, Tensor], up: str, down: str) -> tuple[int, int]:
    if up not in parts or down not in parts:
        raise _Misfit(HALF)
    shapes = parts[up].shape, parts[down].shape
    if {len(shape) for shape in shapes} != {2} or shapes[0][1] != shapes[1][0] or 0 in shapes[0]:
        raise _Misfit(NO_PRODUCT)
    return shapes[0][0], shapes[1][1]


def _dora_scale(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """As a column, a length for each row of the weight, or as a row. Raises _Misfit."""
    if len(shape) == 2 and scale.shape in ((shape[0],), (shape[0], 1)):
        return scale.reshape(-1, 1)
    if len(shape) == 2 and scale.shape in ((shape[1],), (1, shape[1])):
        return scale.reshape(1, -1)
    raise _Misfit(f"its DoRA scale is {_sizes(scale.shape)} and the layer is {_sizes(shape)}")


def _sizes(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single value"


def _extent(place: Place, shape: torch.Size) -> tuple[int, tuple[int, ...]]:
    """The first row and the shape of what a change goes to.

    The rows of q are as many as the columns of the fused layer.
    """
    if place.rows is None:
        return 0, tuple(shape)
    queries = shape[-1]
    others = (shape[0] - queries) // 2
    number = FUSED.index(place.rows)
    start = queries + (number - 1) * others if number else 0
    return start, (others if number else queries, *shape[1:])


def _put(changes: list[_Change], shapes: Mapping[str, torch.Size], fit: LoraFit) -> None:
    """The changes of one layer, as one if they can be."""
    layer = changes[0].place.layer
    if changes[0].place.rows and all(change.parts.keys() == set(LORA) for change in changes):
        changes = [_fused(changes, layer, shapes[f"{layer}.weight"])]
    for change in changes:
        if "diff_b" in change.parts:
            layer = layer.removesuffix(".bias")
        name, target = layer, f"{layer}.weight"
        if change.place.rows:
            name = f"{layer.rpartition('.')[0]}.{change.place.rows}"
            start, (rows, *_) = _extent(change.place, shapes[target])
            target = (target, (0, start, rows))
        fit.targets[name] = target
        for part, value in change.parts.items():
            if part == "dora_scale":
                value = _dora_scale(value, _extent(change.place, shapes[f"{layer}.weight"])[1])
            fit.tensors[f"{name}.{part}" + (".weight" if part in LORA else "")] = value
        if change.alpha is not None:
            fit.tensors[f"{name}.alpha"] = torch.tensor(change.alpha, dtype=torch.float64)


def _fused(changes: list[_Change], layer: str, shape: torch.Size) -> _Change:
    """Changes of the rows of q, k and v as one of as many ranks: all of lora_down, and lora_up in blocks.

    Where they are not equally strong, lora_up is multiplied by how strong each is, in float32.
    """
    changes = sorted(changes, key=lambda change: FUSED.index(change.place.rows))
    ups = [change.parts["lora_up"] for change in changes]
    downs = [change.parts["lora_down"] for change in changes]
    alpha, scale = changes[0].alpha, changes[0].scale
    if not all(math.isclose(change.scale, scale, rel_tol=ROUNDED) for change in changes):
        ups, alpha = [up.float() * change.scale for up, change in zip(ups, changes, strict=True)], None
    elif alpha is not None:
        alpha = scale * sum(change.rank for change in changes)
    dtype = functools.reduce(torch.promote_types, (part.dtype for part in (*ups, *downs)))
    lora_up = torch.zeros(shape[0], sum(change.rank for change in changes), dtype=dtype)
    rank = 0
    for change, up in zip(changes, ups, strict=True):
        start, (rows, _) = _extent(change.place, shape)
        lora_up[start : start + rows, rank : rank + change.rank] = up
        rank += change.rank
    parts = {"lora_up": lora_up, "lora_down": torch.cat([down.to(dtype) for down in downs])}
    return _Change(changes[0].path, Place(layer), parts, {}, alpha)
