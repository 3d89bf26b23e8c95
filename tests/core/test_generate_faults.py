"""Folders, disks, devices and processes that fail while pictures are drawn."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.core import processes
from tests.core.test_generate_many import NANO, SMALL, file_of, results, run
from zimage_core.acceleration.small_card import NoRoom
from zimage_core.generate import __main__ as command
from zimage_core.generate.batches import Batch
from zimage_core.generate.manifest import Manifest
from zimage_core.generate.requests import Request, read
from zimage_core.generate.worker import Job, Worker
from zimage_core.train.parts import Files

LINES = [{"prompt": f"a {'long ' * (n // 4 * 60)}prompt"} for n in range(8)]


def begun(requests: Path, out: Path) -> Manifest:
    return Manifest(out, read(requests), 4, "a model")


def drawn(manifest: Manifest) -> None:
    for number, batch in manifest.todo:
        manifest.record(number, batch, {request.id: b"a picture" for request in batch})
    manifest.close()


def test_a_batch_whose_lines_are_not_all_there_is_drawn_again_and_stands_there_once(tmp_path: Path) -> None:
    """As a full disk leaves it, or somebody who takes out the line of an error to have it tried again."""
    requests, out = file_of(tmp_path, LINES), tmp_path / "out"
    drawn(begun(requests, out))
    whole = (out / "manifest.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 11
    for missing in (range(8, 11), range(10, 11), range(3, 4), range(4, 9)):
        left = [line for at, line in enumerate(lines) if at not in missing]
        (out / "manifest.jsonl").write_bytes(b"".join(left))
        manifest = begun(requests, out)
        assert {n for n, _ in manifest.todo} == {json.loads(lines[at])["batch"] for at in missing}
        drawn(manifest)
        assert sorted((out / "manifest.jsonl").read_bytes().splitlines(keepends=True)) == sorted(lines)
        assert begun(requests, out).todo == []


def test_what_a_killed_run_left_behind_goes_away(tmp_path: Path) -> None:
    requests, out = file_of(tmp_path, LINES[:1]), tmp_path / "out"
    begun(requests, out).close()
    for name in ("000001.png", ".000001.png.part"):
        (out / name).write_bytes(b"half")
    manifest = begun(requests, out)
    manifest.record(*manifest.todo[0], {}, "its LoRA is gone")
    manifest.close()
    assert [path.name for path in out.iterdir()] == ["manifest.jsonl"]
    again = begun(requests, out)
    assert (again.todo, again.failed) == ([], 1)


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"notes of mine", b"notes of mine\n", b"[]\n", b'{"format": "another"}\n', None]
)
def test_a_manifest_that_is_none(tmp_path: Path, text: bytes | None) -> None:
    """None: the beginning of one. An empty one is written, as a kill may leave it before."""
    requests, out = file_of(tmp_path, LINES), tmp_path / "out"
    begun(requests, out).close()
    path = out / "manifest.jsonl"
    text = text if text is not None else b"".join(path.read_bytes().splitlines(keepends=True)[:2])
    path.write_bytes(text)
    if not text:
        assert len(begun(requests, out).todo) == 2
        return
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        begun(requests, out)
    assert path.read_bytes() == text


def test_pictures_of_something_else_are_not_written_over(tmp_path: Path) -> None:
    requests, out = file_of(tmp_path, [{"prompt": "a", "id": "Mine"}]), tmp_path / "out"
    out.mkdir()
    (out / "mine.PNG").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        begun(requests, out)
    assert [path.name for path in out.iterdir()] == ["mine.PNG"]


def test_of_many_that_begin_at_once_one_draws(tmp_path: Path) -> None:
    requests, fork = file_of(tmp_path, LINES), multiprocessing.get_context("fork")
    for number in range(4):
        out, gate = tmp_path / f"{number}", fork.Barrier(4, timeout=30)
        others = [fork.Process(target=_begin, args=(requests, out, gate)) for _ in range(4)]
        for process in others:
            process.start()
        for process in others:
            process.join()
        assert [process.exitcode for process in others].count(0) == 1
        manifest = begun(requests, out)
        assert len(manifest.todo) == 2
        manifest.close()


def _begin(requests: Path, out: Path, gate) -> None:
    gate.wait()
    try:
        manifest = begun(requests, out)
    except FileExistsError:
        gate.wait()
        os._exit(1)
    gate.wait()  # it is held until all have tried
    manifest.close()
    os._exit(0)


# ---- what fails while pictures are drawn


class Planted(Worker):
    """Draws no picture, and fails for some prompts as a device that is too small does."""

    def __init__(self, job: Job, split: bool = False) -> None:
        self.job, self.split = job, split

    def _agreed(self, error: str) -> str:
        return error

    def _prepared(self, batch: Batch) -> str:
        if batch[0].prompt == "a LoRA too large":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ""

    def _pictures(self, batch: Batch) -> dict[str, bytes]:
        if batch[0].prompt == "too large":
            torch.empty(1 << 60)
        if batch[0].prompt == "over the limit":
            raise NoRoom("needs more")
        return {request.id: b"a picture" * 1000 for request in batch}


def test_what_fails_for_want_of_memory_stays_open_and_the_others_are_drawn(
    tmp_path: Path, monkeypatch, caplog
) -> None:
    lines = [{"prompt": p} for p in ("too large", "a fox", "a LoRA too large", "a cat")]
    requests, out = file_of(tmp_path, lines), tmp_path / "out"
    monkeypatch.setattr(command, "Worker", Planted)
    assert run(requests, out, "--batch", "1") == 1
    assert "2 of 4 pictures are left" in caplog.text and "CUDA out of memory" in caplog.text
    assert results(out).keys() == {"000002", "000004"}
    monkeypatch.setattr(Planted, "_prepared", lambda self, batch: "")
    assert run(requests, out, "--batch", "1") == 1
    assert "1 of 2 pictures are left" in caplog.text and "allocate" in caplog.text
    assert results(out).keys() == {"000002", "000003", "000004"}


def test_a_device_on_which_nothing_can_be_drawn_ends_the_run_soon(tmp_path: Path, monkeypatch) -> None:
    requests = file_of(tmp_path, [{"prompt": "too large"}] * 9 + [{"prompt": "a fox"}])
    monkeypatch.setattr(command, "Worker", Planted)
    assert run(requests, tmp_path / "out", "--batch", "1") == 1
    assert results(tmp_path / "out") == {}


@pytest.mark.parametrize("prompt", ["too large", "a LoRA too large"])
def test_processes_that_share_pictures_end_where_one_may_fail_alone(prompt: str) -> None:
    worker = Planted(Job(Files(*[Path()] * 4), None, Path(), "cpu"), split=True)
    assert worker.draw((Request(1, "a", "over the limit"),)).again == "needs more"
    with pytest.raises(RuntimeError, match="memory"):
        worker.draw((Request(1, "a", prompt),))


def test_a_device_too_small_for_the_model(tmp_path: Path, monkeypatch, capsys) -> None:
    def full(self, job: Job, split: bool = False) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(command.Worker, "__init__", full)
    assert run(file_of(tmp_path, LINES), tmp_path / "out") == 1
    assert "the GPU is too small for the model, give --vram: CUDA out of memory" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["nothing", "meta", "cuda:99"])
def test_a_device_that_is_not_here(tmp_path: Path, capsys, device: str) -> None:
    assert run(file_of(tmp_path, LINES), tmp_path / "out", "--device", device) == 1
    assert f"--device {device} cannot be used here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tmp_path: Path) -> None:
    """Files that cannot become so large stand for it; once they can, the same command goes on."""
    requests, out = file_of(tmp_path, LINES), tmp_path / "out"
    said = tmp_path / "said"
    process = multiprocessing.get_context("fork").Process(target=_without_room, args=(requests, out, said))
    process.start()
    process.join()
    assert process.exitcode == 1
    assert f"{out} cannot be written: File too large. Make room" in said.read_text(encoding="utf-8")
    assert [path.name for path in out.iterdir()] == ["manifest.jsonl"]
    manifest = begun(requests, out)
    assert len(manifest.todo) == 2
    manifest.close()


def _without_room(requests: Path, out: Path, said: Path) -> None:
    command.Worker = Planted
    job = command.job_of
    command.job_of = lambda given, device: SimpleNamespace(model="a model", **vars(job(given, device)))
    with said.open("w", encoding="utf-8") as file:
        sys.stderr = file
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        code = run(requests, out)
    os._exit(code)


def test_weights_of_the_same_name_and_size_are_others(tmp_path: Path) -> None:
    """As those of Turbo and Base."""
    facts = []
    for number in range(2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        values = torch.full((300, 300), float(number))
        save_file({"weight": values}, folder / "transformer.safetensors")
        job = Job(Files(*[folder / "transformer.safetensors"] * 4), None, tmp_path, "cpu")
        facts.append(job.model)
    assert facts[0] != facts[1]


# ---- several processes for each picture


@pytest.mark.long
def test_of_two_that_share_pictures_one_is_killed_and_the_other_ends_with_an_error(tmp_path: Path) -> None:
    lines = [{"prompt": f"a fox {n}", **SMALL} for n in range(12)]
    requests, out, whole = file_of(tmp_path, lines), tmp_path / "out", tmp_path / "whole"

    def start(out: Path) -> list[subprocess.Popen]:
        given = [str(requests), str(out), "--model", str(NANO), "--device", "cpu", "--split"]
        return processes.start(2, "zimage_core.generate", *given)

    both = start(out)
    while not (out / "manifest.jsonl").exists() or not results(out):
        assert all(process.poll() is None for process in both)
        time.sleep(0.01)
    both[1].kill()
    code, said = processes.ended(both, 60)[0]
    assert code == 1 and "this process failed, or one that it waits for" in said
    assert 0 < len(results(out)) < len(lines)
    for folder in (out, whole):
        assert [code for code, _ in processes.ended(start(folder))] == [0, 0]
    names = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in out.iterdir()) == names and len(names) == len(lines) + 1
    for name in names[:-1]:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.long
def test_two_that_share_pictures_draw_with_the_same(tmp_path: Path) -> None:
    requests = file_of(tmp_path, [{"prompt": "a fox", **SMALL}])
    given = [str(requests), str(tmp_path / "out"), "--model", str(NANO), "--device", "cpu", "--split"]
    for code, said in processes.ended(
        processes.start(2, "zimage_core.generate", *given, last=["--vram", "40MB"])
    ):
        assert code == 1 and "--vram: the processes have others (0: None, 1: 40MB)" in said
    assert results(tmp_path / "out") == {}
