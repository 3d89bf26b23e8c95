"""States of sharded runs: torch's distributed checkpoints, to which each process writes its own part.

Reading one unpickles its index. So the command line alone reads them, and from the run's own folder alone.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from . import state as states
from .distributed import Processes
from .state import KEPT, State

PATTERN = "step-????????"
FACTS = "facts.json"  # written last: without it a state is not whole


def folders(folder: Path) -> list[Path]:
    """The whole states in a folder, the latest first. Links that lead elsewhere are left out."""
    found = sorted(folder.glob(PATTERN), reverse=True) if folder.is_dir() else []
    home = folder.resolve()
    return [path for path in found if path.resolve().parent == home and (path / FACTS).is_file()]


def save(folder: Path, state: State, group: Processes) -> Path:
    """Write a state by all processes together, and delete all but the last two."""
    import torch.distributed.checkpoint as dcp

    tensors, numbers = states.flat(state)
    path, partial = folder / f"step-{state.step:08d}", folder / ".step.part"
    if group.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    group.wait()
    dcp.save(tensors, checkpoint_id=partial)
    group.wait()
    if group.first:
        facts = {"step": state.step, "seconds": state.seconds, "optimizers": numbers}
        (partial / FACTS).write_text(json.dumps(facts), "utf-8")
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
        found = folders(folder)
        for old in found[found.index(path) + KEPT :]:
            shutil.rmtree(old)
    group.wait()
    return path


def read(path: Path, parameters: Mapping[str, Tensor], group: Processes) -> State:
    """A state, sharded as the parameters are, or whole where they are."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import FileSystemReader

    facts = json.loads((path / FACTS).read_text("utf-8"))
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    names = list(parameters)

    def room(key: str) -> Tensor:
        size, dtype = stored[key].size, stored[key].properties.dtype
        kind, _, name = key.partition(".")
        if kind == "moment":
            name = names[int(name.split(".")[1])]
        like = parameters.get(name)
        if like is not None and like.shape == size:
            return torch.zeros_like(like, dtype=dtype, requires_grad=False)
        return torch.zeros(size, dtype=dtype)

    tensors = {key: room(key) for key in stored}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that one process reads it, which is meant
        dcp.load(tensors, checkpoint_id=path, no_dist=group.size == 1)
    return states.of(tensors, facts)


def load(folder: Path, parameters: Mapping[str, Tensor], group: Processes) -> State | None:
    """The latest state, of this or another number of processes; None where there is none.

    Raises ValueError where it is damaged: processes would not agree by themselves on another one.
    """
    found, one = folders(folder), states.files(folder)
    if found and (not one or found[0].name > one[0].stem):
        try:
            return read(found[0], parameters, group)
        except (Exception, _failed()) as error:  # damage shows as errors of nearly every kind
            first = str(error).strip().split("\n")[0][:200] or type(error).__name__
            raise ValueError(
                f"the state {found[0]} cannot be read ({first}): delete that folder to go on from the one "
                "before it"
            ) from error
    state = states.load(folder)
    if state is None:
        return None
    return State(
        state.step,
        state.seconds,
        {name: _as(value, parameters.get(name)) for name, value in state.weights.items()},
        {name: _as(value, parameters.get(name)) for name, value in state.average.items()},
        [_moments(moments, parameters) for moments in state.moments],
    )


def _failed() -> type[BaseException]:
    from torch.distributed.checkpoint.api import CheckpointException

    return CheckpointException


def _moments(moments: Mapping, parameters: Mapping[str, Tensor]) -> dict:
    likes = list(parameters.values())
    spread = {
        index: {
            key: _as(value, likes[index]) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        for index, values in moments["state"].items()
    }
    return {**moments, "state": spread}


def _as(value: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor sharded as a parameter of its shape."""
    if not hasattr(like, "placements") or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
