"""The record of a run in its folder: what is drawn together, what was drawn, what could not be.

manifest.jsonl begins with the request file's hash, broken lines and all batches, and is complete before the
first picture. Then each batch adds a line for each of its requests, once all its pictures are on the disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .batches import Batch, cut
from .requests import Request, RequestFile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = "manifest.jsonl"
FORMAT = "zimage_core.generate 1"


class Manifest:
    """Of a folder; `close` gives it free for another process.

    todo: number and requests of each batch that is not done. failed: how many requests have an error.
    """

    def __init__(self, folder: Path, found: RequestFile, largest: int, model: str) -> None:
        """Begins a folder, or goes on with one. model: a name of its weights.

        Raises FileExistsError where the folder is of another run, or another process works in it.
        """
        self.folder, self.path, self.failed = folder, folder / NAME, 0
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file: expected a folder for the pictures")
        folder.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT, "requests": found.hash, "batch_size": largest, "model": model}
        if not self.path.exists():
            _nothing_written_over(folder, found.requests)
        self.file = _held(self.path)
        try:
            if os.fstat(self.file.fileno()).st_size == 0:
                self._write(_plan(head, found, cut(found.requests, largest)))
            self.todo = self._rest(head, {request.id: request for request in found.requests})
            for left in folder.glob(".*.png.part"):  # by a run that was killed
                left.unlink()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.file.close()

    def _write(self, text: bytes) -> None:
        """The manifest anew. Another process finds the old file held, or is the one that goes on."""
        if fcntl is None:  # Windows exchanges no open file
            self.file.close()
        put(self.path, text)
        with self.file:
            self.file = _held(self.path)

    def _rest(self, head: Mapping[str, Any], requests: Mapping[str, Request]) -> list[tuple[int, Batch]]:
        """What a run that was broken off has left. Lines that it did not finish are taken away."""
        batches: dict[int, Batch] = {}
        done: dict[int, set[str]] = {}
        errors: list[int] = []  # the batch of each
        whole = 0
        try:
            for row, end in _rows(self.file):
                if whole == 0:
                    self._same(row, head)
                elif "requests" in row:
                    batches[row["batch"]] = tuple(requests[name] for name in row["requests"])
                elif "id" in row:
                    done.setdefault(row["batch"], set()).add(row["id"])
                    if "error" in row:
                        errors.append(row["batch"])
                whole = end
        except (ValueError, KeyError, TypeError):  # no JSON, or not what stood there
            batches = {}
        if whole == 0 or sum(map(len, batches.values())) != len(requests):
            raise FileExistsError(f"{self.path} was changed: choose an empty folder")
        self.file.truncate(whole)
        todo = [(n, batch) for n, batch in batches.items() if done.get(n) != {r.id for r in batch}]
        self.failed = len(errors) - sum(errors.count(number) for number, _ in todo)
        if begun := done.keys() & {number for number, _ in todo}:
            self._write(_without(begun, self.file))
        return todo

    def _same(self, row: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        differs = [name for name, value in head.items() if row.get(name) != value]
        if differs:
            what = {"requests": "another request file", "model": "another model"}.get(
                differs[0], f"{differs[0]} {row.get(differs[0])}"
            )
            raise FileExistsError(
                f"{self.folder} was begun with {what}: choose an empty folder, or give the same again"
            )

    def record(self, number: int, batch: Batch, pictures: Mapping[str, bytes], error: str = "") -> None:
        """A batch is done. pictures: PNG files by id; error: why there are none. Raises OSError."""
        try:
            self._record(number, batch, pictures, error)
        except OSError as error:
            raise OSError(
                f"{self.folder} cannot be written: {error.strerror}. Make room, or mend it; the same command "
                "goes on from there"
            ) from error

    def _record(self, number: int, batch: Batch, pictures: Mapping[str, bytes], error: str) -> None:
        for name, data in pictures.items():
            put(self.folder / f"{name}.png", data)
        rows = []
        for request in batch:
            result = {"file": f"{request.id}.png"}
            if request.id not in pictures:
                result = {"error": error}
                (self.folder / f"{request.id}.png").unlink(missing_ok=True)  # of a run that was killed
            rows.append({"id": request.id, "batch": number, "line": request.line, **result})
        if pictures:
            _sync_folder(self.folder)
        self.file.write(_text(rows))
        self.file.flush()
        os.fsync(self.file.fileno())


def _held(path: Path) -> Any:
    """The file, which no other process has; an empty one where there was none."""
    while True:
        file = open(path, "ab+")  # noqa: SIM115
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise FileExistsError(f"another process draws into {path.parent}: wait until it ends") from None
        except OSError:  # a disk that knows no locks
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # the other process wrote it anew meanwhile


def _nothing_written_over(folder: Path, requests: Sequence[Request]) -> None:
    there = {name.casefold() for name in os.listdir(folder)}
    for name in (f"{request.id}.png" for request in requests):
        if name.casefold() in there:
            raise FileExistsError(f"{folder} holds {name} of something else: choose an empty folder")


def _without(batches: Container[int], file: Any) -> bytes:
    """All lines but the results of these batches."""
    file.seek(0)
    return b"".join(
        line for line in file if (row := json.loads(line)).get("batch") not in batches or "id" not in row
    )


def _plan(head: Mapping[str, Any], found: RequestFile, batches: Sequence[Batch]) -> bytes:
    broken = [{"line": each.line, "error": each.error} for each in found.broken]
    cuts = [{"batch": n, "requests": [r.id for r in batch]} for n, batch in enumerate(batches)]
    return _text([head, *broken, *cuts])


def _text(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _rows(file: Any) -> Iterator[tuple[dict, int]]:
    """Each whole line, and where it ends."""
    end = 0
    file.seek(0)
    for line in file:
        if not line.endswith(b"\n"):
            return
        row = json.loads(line)
        if not isinstance(row, dict):
            raise TypeError
        end += len(line)
        yield row, end


def put(path: Path, data: bytes) -> None:
    """A file is there whole or not at all, also after the machine lost its power."""
    partial = path.with_name(f".{path.name}.part")
    partial.unlink(missing_ok=True)  # of a run that was broken off, or a link to elsewhere
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    if path.name == NAME:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes new names last."""
    if fcntl is None:  # folders cannot be opened there
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
