"""Folders, disks, devices and processes that fail while pictures are drawn."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from tests.core.test_generate_many import file_of
from zimage_core.generate.manifest import Manifest
from zimage_core.generate.requests import read

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
    for number in range(8):
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
