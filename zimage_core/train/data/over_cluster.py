"""Work on the pictures of a data set over a Ray cluster. Its machines read them in the same places."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...cluster import LOSSES, Cluster, Room, installed, named
from .. import parts
from .caption_match import CaptionJudge
from .each_picture import Failed, Item, Results, Work, read
from .records import DataError

Chunk = tuple[Item, ...]
Done = tuple[str, list[tuple[int, Any]]]  # the machine; bytes of each file, -1 where it has none, and result
PLACES = "Pictures have to lie in the same places on all machines, such as a shared disk"


@dataclass(frozen=True)
class Pictures:
    """The cluster's task. folder: from which paths are told."""

    work: Work
    folder: Path

    @property
    def silence(self) -> float:
        return self.work.silence

    def versions(self) -> dict[str, str]:
        return self.work.versions()

    def begin(self, device: str) -> Callable[[Chunk], Done]:
        done, host = self.work.begin(device), socket.gethostname()

        def each(item: Item) -> tuple[int, Any]:
            path = self.folder / item.path
            return bytes_of(path), done(path, item.known)

        return lambda chunk: (host, [each(item) for item in chunk])

    def parts(self, item: Chunk) -> Sequence[Chunk]:
        return [(each,) for each in item] if len(item) > 1 else ()

    def given_up(self, item: Chunk, why: str) -> Done:
        failed = Failed(f"{LOSSES} workers were lost while they looked at it: {why}")
        return "", [(-1, failed) for _ in item]


@dataclass(frozen=True)
class ModelJudge:
    """Judges captions by the model in files. side: pixels of a square picture."""

    files: parts.Files
    side: int

    def on(self, device: str) -> CaptionJudge:
        """Raises WeightsError or OSError."""
        made, _ = parts.from_files(self.files, device)
        made.place()
        return CaptionJudge(made.model, made.encode, made.features, self.side)

    def versions(self) -> dict[str, str]:
        return {**installed("torch"), "the model's files": named(vars(self.files).values())}


class OverCluster:
    """Goes through pictures on workers: with a CPU each, or for models with a GPU where there are any.

    workers: None: as many as there is room for. Raises ClusterError where there is no room for so many; for
    models: none for one, and there are as many as there is room for where that is less.
    """

    def __init__(self, cluster: Cluster, workers: int | None, models: bool) -> None:
        self.cluster = cluster
        self.pictures = cluster.room(workers, "cpu", threads=1)
        self.models: Room | None = None
        if models:
            found = cluster.room(None)
            self.models = replace(found, count=min(found.count, workers or found.count))

    def __call__(self, work: Work, items: Iterable[Item]) -> Results:
        """Raises ClusterError, and DataError where a machine has not the pictures that this one has."""
        room = self.models if work.model else self.pictures
        task = Pictures(work, Path.cwd())
        for chunk, (host, results) in self.cluster.results(task, chunks(items, work.at_once), room):
            for item, (size, result) in zip(chunk, results, strict=True):
                yield item.index, agreed(work, item.path, host, size, result)


def chunks(items: Iterable[Item], count: int) -> Iterator[Chunk]:
    items = iter(items)
    while chunk := tuple(itertools.islice(items, count)):
        yield chunk


def agreed(work: Work, path: Path, host: str, size: int, result: Any) -> Any:
    """A result from another machine, of the picture that lies here. Raises DataError for another one."""
    if isinstance(result, Failed):
        if not result.unread:
            return result
        own = read(path, work.limits)
        if isinstance(own, Failed):
            return own
        raise DataError(f"{path} cannot be read on {host} ({result.reason}), and here it can. {PLACES}.")
    if size != bytes_of(path):
        raise DataError(f"{path} has {size:,} bytes on {host}, and here {bytes_of(path):,}. {PLACES}.")
    return result


def bytes_of(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return -1
