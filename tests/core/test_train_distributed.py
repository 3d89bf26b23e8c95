"""Two processes that train together are one, and stop together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.core.processes import ended, start
from tests.core.random_models import random_s3dit, relative
from tests.core.together import ALL, CONFIG, KINDS, PLAN, SEED, full_run, train
from zimage_core.train import shards
from zimage_core.train import state as states
from zimage_core.train.distributed import Processes
from zimage_core.train.trainer import LOG

CLOSE = 1e-6
JOBS = "tests.core.together"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str]]]:
    """Where two processes did their jobs, and how each ended."""
    made = tmp_path_factory.mktemp("together")
    train(ALL, Processes(), made / "begun by one", stop_at=2)
    found = ended(start(2, JOBS, str(made), "equal", "full_run", "stopped", "fails"))
    done = {f"{job} {rank}" for job in ("equal", "full_run", "stopped") for rank in range(2)}
    assert done <= {path.name for path in made.iterdir()}, found
    return made, found


@pytest.fixture
def folder(both: tuple[Path, list]) -> Path:
    return both[0]


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    apart = {name: relative(value, expected[name]) for name, value in found.items() if expected[name].any()}
    assert max(apart.values()) <= CLOSE, max(apart, key=apart.get)


@pytest.mark.parametrize("kind", KINDS)
def test_two_are_one(kind: str, folder: Path, tmp_path: Path) -> None:
    """Weights after steps of AdamW on parts of unequal size, and a picture that both draw."""
    close(load_file(folder / f"{kind}.safetensors"), train(kind, Processes(), tmp_path))


def test_a_run_of_two_with_samples_writes_the_file_of_one(folder: Path, tmp_path: Path) -> None:
    full_run(Processes(), tmp_path)
    found, expected = (load_file(path / "in full.safetensors") for path in (folder, tmp_path))
    close(found, expected)
    written = load_file(folder / "written.safetensors")
    assert written.keys() == random_s3dit(CONFIG, SEED).state_dict().keys()
    assert all(torch.equal(written[name], value.bfloat16()) for name, value in found.items())


@pytest.mark.parametrize("kind", KINDS)
def test_one_goes_on_with_what_two_began(kind: str, folder: Path, tmp_path: Path) -> None:
    begun = folder / f"{kind}, begun by two"
    found = train(kind, Processes(shards=True), begun)
    assert len((begun / LOG).read_text().splitlines()) == PLAN.steps
    close(found, train(kind, Processes(), tmp_path))


def test_two_go_on_with_what_one_began(folder: Path, tmp_path: Path) -> None:
    close(load_file(folder / "begun by one.safetensors"), train(ALL, Processes(), tmp_path))


def test_the_first_alone_writes_what_all_have(folder: Path) -> None:
    names = {kind: [path.name for path in sorted((folder / kind).glob("step-*"))] for kind in KINDS}
    assert names == {
        "lora": ["step-00000002.safetensors", "step-00000003.safetensors"],
        "visual layers": ["step-00000002", "step-00000003"],
    }
    for kind in KINDS:
        assert len((folder / kind / LOG).read_text().splitlines()) == PLAN.steps


@pytest.mark.parametrize("kind", KINDS)
def test_all_stop_after_the_step_in_which_one_was_asked_to(kind: str, folder: Path) -> None:
    (state,) = (folder / f"{kind}, stopped").glob("step-*")
    assert state.stem == "step-00000002"
    assert len((folder / f"{kind}, stopped" / LOG).read_text().splitlines()) == 2


def test_others_end_when_the_first_fails(both: tuple[Path, list[tuple[int, str]]]) -> None:
    (first, said), (second, _) = both[1]
    assert first and second and "planted" in said


def test_what_unpickles_is_read_by_the_command_line_alone(folder: Path, tmp_path: Path) -> None:
    """Others begin anew; and a link to a state of another folder is no state of this one."""
    shutil.copytree(folder / "visual layers, stopped", tmp_path / "copied")
    train("visual layers", Processes(), tmp_path / "copied", stop_at=1)
    assert [path.name for path in states.files(tmp_path / "copied")] == ["step-00000001.safetensors"]
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "step-00000002").symlink_to(tmp_path / "copied" / "step-00000002")
    assert shards.folders(tmp_path / "copied") and not shards.folders(linked)
