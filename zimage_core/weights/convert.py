"""A transformer -> a smaller file of it, checked against what it was made from."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import WeightsError
from .file_writers import WRITERS, exists, new_file
from .layerwise import Layerwise, open_transformer, velocities
from .targets import QUANTISED, TARGETS, Target
from .values import finite

log = logging.getLogger(__name__)

SEED = 0
SIGMAS = (0.9, 0.5, 0.1)
SIDE = 32  # cells of the latent: a picture of 256x256
SPARE = 1 << 24  # bytes that stay free on the disk beside the file
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last where files have a limit
STEPS = 3  # passes over the weights: one writes, two compute the velocity before and after

Progress = Callable[[int, int], None]  # values done, of all; what it raises ends the conversion


@dataclass(frozen=True)
class Converted:
    """A written file. errors: at each of SIGMAS, the relative L2 distance of its velocity."""

    path: Path
    name: str
    to: str
    bytes: int
    bytes_before: int
    quantised: int
    kept: int
    errors: tuple[float, ...]

    @property
    def share(self) -> str:
        """Of the bytes before."""
        return f"{100 * self.bytes / self.bytes_before:.0f} % of {self.name}"

    @property
    def summary(self) -> str:
        """Lines for people."""
        errors = ", ".join(f"{e:.2g} at {s}" for s, e in zip(SIGMAS, self.errors, strict=True))
        return (
            f"{self.path}: {self.bytes / 1e9:.2f} GB, {self.share}; {self.quantised} "
            f"matrices in {self.to}, {self.kept} tensors as they were.\nRelative L2 error of the velocity at "
            f"three sigmas: {errors} (random latent of {8 * SIDE}x{8 * SIDE} pixels, random caption, seed "
            f"{SEED})."
        )


def convert(
    source: str | os.PathLike, out: str | os.PathLike, to: str, progress: Progress | None = None
) -> Converted:
    """A smaller file of the transformer in a file or folder; to: a key of TARGETS.

    progress: without one, each tenth is logged. No more than one layer and a few copies of it are in memory.
    Nothing is left of what is not finished. Raises WeightsError for what cannot be read or written, and when
    `out` exists.
    """
    path = Path(out)
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise WeightsError(f"{source} and {out} are the same file: choose another name for the new one.")
    check_place(path, to)
    return write_smaller(open_transformer(source), path, to, progress)


def check_place(path: Path, to: str) -> None:
    """Raises WeightsError when a file of this kind cannot be written there."""
    target = TARGETS[to]
    if target.suffix == ".gguf" and importlib.util.find_spec("gguf") is None:
        raise WeightsError(f"{to} needs the Python package gguf: pip install gguf, or choose fp8 or int8.")
    if path.suffix != target.suffix:
        raise WeightsError(f"{path.name}: a file in {to} ends in {target.suffix}, or no loader lists it.")
    if os.path.lexists(path):
        raise exists(path)
    if not path.parent.is_dir():
        raise WeightsError(f"{path.parent} is no folder: make it first, or choose another.")


def write_smaller(
    weights: Layerwise,
    path: Path,
    to: str,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Converted:
    """As `convert`, from weights of any origin; device: where velocities are computed. Logs the summary."""
    check_place(path, to)
    if weights.stored_as:
        log.warning(
            "%s is stored in %s: what that lost adds to what %s loses. Convert the bf16 file where you can.",
            weights.name, " and ".join(weights.stored_as), to,
        )  # fmt: skip
    plan = _Plan.of(weights, to)
    free = shutil.disk_usage(path.parent).free
    if free < plan.bytes + SPARE:
        raise WeightsError(
            f"{path.name} takes {plan.bytes / 1e9:.2f} GB, and {path.parent} has {free / 1e9:.2f} GB free: "
            "free some, or choose another folder."
        )
    values = sum(shape.numel() for shape in weights.shapes.values())
    done = _Counter(STEPS * values, progress or _logged(path.name))
    try:
        with new_file(path) as partial:
            _write(weights, plan, partial, done)
            size = partial.stat().st_size
            errors = _errors(weights, partial, device, done)
            done(done.total)
    except OSError as error:
        todo = "Choose another name or folder."
        if error.errno in FULL:
            todo = f"It takes {plan.bytes / 1e9:.2f} GB: free so much or choose another folder."
        raise WeightsError(f"{path} cannot be written: {error.strerror or error}. {todo}") from error
    kept = len(weights.types) - len(plan.formats)
    written = Converted(path, weights.name, to, size, weights.bytes, len(plan.formats), kept, errors)
    log.info("%s", written.summary)
    return written


def in_memory(weights: Layerwise, to: str, progress: Progress | None = None) -> dict[str, Tensor]:
    """The tensors of such a file, without one. Raises WeightsError as `write_smaller` does."""
    plan = _Plan.of(weights, to)
    values = sum(shape.numel() for shape in weights.shapes.values())
    made = _Made()
    _write_into(made, weights, plan, _Counter(values, progress or _logged(weights.name)))
    return made


class _Made(dict):
    """What a writer is told to write, kept."""

    def write(self, key: str, value: Tensor) -> None:
        self[key] = value


class _Counter:
    """Adds up what is done. `progress` ends the work by what it raises."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.done, self.progress = total, 0, progress

    def __call__(self, values: int) -> None:
        self.done = min(self.total, self.done + values)
        self.progress(self.done, self.total)


def _logged(name: str) -> Progress:
    last = -1

    def progress(done: int, total: int) -> None:
        nonlocal last
        if (tenth := 10 * done // total) > last:
            last = tenth
            log.info("%s: %d %%", name, 10 * tenth)

    return progress


@dataclass(frozen=True)
class _Plan:
    """What a file will hold: shapes and types, on the meta device, and the formats of quantised layers."""

    target: Target
    tensors: dict[str, Tensor]
    formats: dict[str, dict]

    @classmethod
    def of(cls, weights: Layerwise, to: str) -> _Plan:
        target, tensors, formats = TARGETS[to], {}, {}
        for key, shape in weights.shapes.items():
            if QUANTISED.fullmatch(key) and shape[1] % target.columns == 0:
                layer = key.removesuffix(".weight")
                formats[layer] = target.spec(shape[1])
                parts = target.stored(torch.empty(shape, device="meta"), formats[layer])
                tensors |= {f"{layer}.{end}": part for end, part in parts.items()}
            else:
                dtype = weights.types[key]
                if target.suffix == ".gguf" and (len(shape) == 1 or key.endswith("pad_token")):
                    dtype = torch.float32  # GGUF loaders take others for raw bytes
                tensors[key] = torch.empty(shape, dtype=dtype, device="meta")
        if target.suffix == ".safetensors":
            tensors |= weights.preferences
        elif weights.preferences:
            log.warning("%s: GGUF has no place for the attentions that its blocks prefer", weights.name)
        return cls(target, tensors, formats)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def _write(weights: Layerwise, plan: _Plan, path: Path, done: _Counter) -> None:
    with WRITERS[plan.target.suffix](path, plan.tensors, plan.formats) as writer:
        _write_into(writer, weights, plan, done)
        writer.close()


def _write_into(writer: Any, weights: Layerwise, plan: _Plan, done: _Counter) -> None:
    for key, shape in weights.shapes.items():
        layer = key.removesuffix(".weight")
        quantised = layer in plan.formats
        value = weights.value(key, torch.float32 if quantised else plan.tensors[key].dtype)
        if not finite(value):
            raise WeightsError(
                f"{weights.name} holds NaN or infinity in {key}: it is damaged or was converted wrongly. "
                "Download it again or choose another file."
            )
        if quantised:
            for end, part in plan.target.stored(value, plan.formats[layer]).items():
                writer.write(f"{layer}.{end}", part)
        else:
            writer.write(key, value)
        done(shape.numel())
    for key in plan.tensors.keys() & weights.preferences.keys():
        writer.write(key, weights.preferences[key])


def _errors(
    weights: Layerwise, written: Path, device: torch.device | str, done: _Counter
) -> tuple[float, ...]:
    sigmas = torch.tensor(SIGMAS)
    old = velocities(weights, sigmas, SIDE, SEED, device, done)
    new = velocities(open_transformer(written), sigmas, SIDE, SEED, device, done)
    errors = tuple(float((a - b).norm() / b.norm()) for a, b in zip(new.double(), old.double(), strict=True))
    if not all(error < float("inf") for error in errors):
        raise WeightsError(
            f"{weights.name} computes no finite velocity, as it is or in the new format: it is "
            "damaged, or no trained model. Choose another file."
        )
    return errors
