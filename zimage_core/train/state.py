"""What a stopped run needs to go on: weights that train, their average, the optimisers' moments, the step.

Safetensors with JSON in their metadata: nothing is unpickled. A state is written under another name first.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

PATTERN = "step-*.safetensors"
KEPT = 2
SPARE = 1 << 26  # bytes that stay free on the disk


@dataclass
class State:
    """Where a run stands. Tensors are those of the run itself, not copies."""

    step: int
    seconds: float
    weights: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    moments: Sequence[Mapping[str, Any]]  # the optimisers' state_dict()


def files(folder: Path) -> list[Path]:
    """The states in a folder, the latest first."""
    return sorted(folder.glob(PATTERN), reverse=True) if folder.is_dir() else []


def flat(state: State) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """All tensors of a state by name, and of each optimiser the rest."""
    tensors: dict[str, Tensor] = {f"weight.{name}": value for name, value in state.weights.items()}
    tensors |= {f"average.{name}": value for name, value in state.average.items()}
    numbers: list[dict[str, Any]] = []
    for at, moments in enumerate(state.moments):
        rest: dict[str, Any] = {"state": {}, "param_groups": moments["param_groups"]}
        for index, values in moments["state"].items():
            for key, value in _flattened(values):
                if isinstance(value, Tensor):
                    tensors[f"moment.{at}.{index}.{key}"] = value
                else:
                    rest["state"].setdefault(str(index), {})[key] = value
        numbers.append(rest)
    return tensors, numbers


def _flattened(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """bitsandbytes has moments in a dict within."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{inner}", found) for inner, found in _flattened(value))
        else:
            yield key, value


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        *outer, last = key.split("/")
        into = out
        for name in outer:
            into = into.setdefault(name, {})
        into[last] = value
    return out


def of(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> State:
    """The state whose tensors and numbers these are. Raises KeyError, TypeError or ValueError."""
    parts: dict[str, dict[str, Tensor]] = {"weight": {}, "average": {}, "moment": {}}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        parts[kind][name] = value
    moments = []
    for at, numbers in enumerate(facts["optimizers"]):
        found: dict[int, dict[str, Any]] = {
            int(index): dict(values) for index, values in numbers["state"].items()
        }
        for name, value in parts["moment"].items():
            owner, index, key = name.split(".", 2)
            if int(owner) == at:
                found.setdefault(int(index), {})[key] = value
        state = {index: _nested(values) for index, values in found.items()}
        moments.append({"state": state, "param_groups": numbers["param_groups"]})
    return State(int(facts["step"]), float(facts["seconds"]), parts["weight"], parts["average"], moments)


def save(folder: Path, state: State) -> Path:
    """Write a state and delete all but the last two. Raises OSError or SafetensorError on a full disk."""
    tensors, numbers = flat(state)
    facts = {"step": state.step, "seconds": state.seconds, "optimizers": numbers}
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"step-{state.step:08d}.safetensors", folder / ".step.part"
    try:
        # clones: an average may share memory with another tensor, which safetensors refuses
        detached = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        save_file(detached, partial, {"training": json.dumps(facts)})
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    found = files(folder)
    at = found.index(path)  # later ones could not be read, or the run would have gone on from them
    for old in (*found[:at], *found[at + KEPT :]):
        old.unlink()
    return path


def load(folder: Path, device: torch.device | str = "cpu") -> State | None:
    """The latest state that can be read, or None where there is none."""
    for path in files(folder):
        try:
            return read(path, device)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s): going on from the state before it", path, error)
    return None


def read(path: Path, device: torch.device | str = "cpu") -> State:
    with safe_open(path, framework="pt", device=str(device)) as file:
        facts = json.loads((file.metadata() or {})["training"])
        return of({key: file.get_tensor(key) for key in file.keys()}, facts)


def check_fits(state: State, parameters: Mapping[str, Tensor], folder: Path) -> None:
    """Raises ValueError where a state is of a run that trains something else."""
    found = {name: tuple(value.shape) for name, value in state.weights.items()}
    wanted = {name: tuple(value.shape) for name, value in parameters.items()}
    if found != wanted:
        names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        first = names[0]
        raise ValueError(
            f"the state in {folder} is of a run with other settings: {first} is {found.get(first)} there and "
            f"{wanted.get(first)} here ({len(names)} differ). Give the run another name, or delete "
            "that folder."
        )
