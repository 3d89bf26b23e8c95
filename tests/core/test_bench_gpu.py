"""`bench gpu`: parts that run out of time or fail, and what is carried to a machine without network."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev
from bench import carried, gpu
from bench.rows import row
from bench.scale import TINY, Scale

ROOT = Path(__file__).resolve().parents[2]
NOW = f"cp{sys.version_info.major}{sys.version_info.minor}"


def three(scale: Scale, until: float) -> Iterator[dict]:
    for number in range(3):
        yield row(f"row {number}", 1.0)


def broken(scale: Scale, until: float) -> Iterator[dict]:
    yield row("before", 1.0)
    raise ValueError("no such kernel")


def test_a_part_says_what_it_had_no_time_for() -> None:
    rows = list(gpu.within("speed", gpu.Part(0.0, {"first": three, "second": three}), TINY))
    assert [found["value"] for found in rows] == [1.0, None]
    assert "first" in rows[1]["against"] and "second" in rows[1]["against"] and rows[1]["holds"] is None


def test_a_group_that_fails_is_a_row_that_does_not_hold() -> None:
    rows = list(gpu.within("speed", gpu.Part(60.0, {"first": broken, "second": three}), TINY))
    assert [found["holds"] for found in rows] == [None, False, None, None, None]
    assert "no such kernel" in rows[1]["against"]


def test_parts_fit_their_time() -> None:
    assert all(part.seconds <= 4 * 60 for part in gpu.PARTS.values())
    assert sum(part.seconds for part in gpu.PARTS.values()) <= 8 * 60
    assert tuple(gpu.PARTS) == dev.GPU_PARTS


@pytest.mark.long
def test_steps_of_training_have_rows_at_a_tiny_scale() -> None:
    rows = list(gpu.within("train", gpu.PARTS["train"], dataclasses.replace(TINY, sizes=(64,))))
    assert all(found["value"] is not None and found["holds"] is None for found in rows[:2]), rows
    assert len(rows) == 3 + 2 * 3 and not [found for found in rows if "failed" in found["name"]]


def test_without_a_gpu_it_says_so() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "dev.py", "bench", "gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "torch sees no GPU" in done.stderr and "--tiny" in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pure-1.0-py3-none-any.whl", True),
        ("pure-1.0-py2.py3-none-any.whl", True),
        ("old-1.0-py2-none-any.whl", False),
        (f"compiled-1.0-{NOW}-{NOW}-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", True),
        (f"compiled-1.0-1-{NOW}-{NOW}-manylinux2014_x86_64.whl", True),
        (f"compiled-1.0-{NOW}-{NOW}-win_amd64.whl", False),
        ("compiled-1.0-cp34-cp34m-manylinux2014_x86_64.whl", False),
        ("stable-1.0-cp38-abi3-manylinux2014_x86_64.whl", True),
        ("stable-1.0-cp399-abi3-manylinux2014_x86_64.whl", False),
    ],
)
def test_wheels_for_this_interpreter(name: str, expected: bool, monkeypatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("sys.platform", "linux")
    assert carried.fits(name) is expected


def archive(path: Path, **files: str) -> None:
    with zipfile.ZipFile(path, "w") as written:
        for name, text in files.items():
            written.writestr(name.replace("__", "/", 1) + ".py", text)


def test_what_lacks_is_unpacked_and_nothing_else(tmp_path, monkeypatch) -> None:
    archive(tmp_path / "carried_here-1.0-py3-none-any.whl", carried_here__module="VALUE = 7")
    archive(tmp_path / "torch-0.1-py3-none-any.whl", torch__other="VALUE = 8")
    archive(tmp_path / "for_others-1.0-py2-none-any.whl", for_others__module="VALUE = 9")
    archive(tmp_path / "ComfyUI-0.0.1.zip", comfy__options="VALUE = 10")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    monkeypatch.delenv("COMFYUI_PATH")
    carried.unpack(tmp_path)
    before, packages = os.environ["PYTHONPATH"].split(os.pathsep)
    assert before == "before" and [path.name for path in Path(packages).iterdir()] == ["carried_here"]
    assert importlib.import_module("carried_here.module").VALUE == 7
    assert (Path(os.environ["COMFYUI_PATH"]) / "comfy" / "options.py").is_file()


def test_a_comfyui_that_was_named_stays(tmp_path, monkeypatch) -> None:
    archive(tmp_path / "ComfyUI-0.0.1.zip", comfy__options="VALUE = 10")
    monkeypatch.setenv("COMFYUI_PATH", "named")
    carried.unpack(tmp_path)
    assert os.environ["COMFYUI_PATH"] == "named"


def test_nothing_is_packed_over_something(tmp_path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="not empty"):
        carried.pack(tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_what_is_carried_has_what_torch_does_not_bring() -> None:
    needed = carried.needed()
    assert {"diffusers", "transformers", "safetensors", "numpy", "einops"} <= needed
    assert not {"torch", "sympy", "filelock"} & needed
