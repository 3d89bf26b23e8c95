"""Work on each picture of a data set by itself: one after the other here, or anywhere in any order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from PIL import Image

from .picture_files import Limits, PictureError, open_picture


class Item(NamedTuple):
    """A picture by its place in the data set. known: what its work needs beside it."""

    index: int
    path: Path
    known: Any = None


@dataclass(frozen=True)
class Failed:
    """Why there is no result. unread: its file could not be read."""

    reason: str
    unread: bool = False


class Work(Protocol):
    """Made of values alone, so that it can be sent to another process.

    at_once: pictures that a worker is given together. silence: seconds after which it is given up.
    model: it holds one, which a GPU is for; else it takes a CPU.
    """

    limits: Limits
    at_once: int
    silence: float
    model: bool

    def here(self) -> Callable[[Path, Any], Any]:
        """What is done with each picture, in this process: (its path, `known`) -> result or Failed."""

    def begin(self, device: str) -> Callable[[Path, Any], Any]:
        """The same in a process that does nothing else."""

    def versions(self) -> dict[str, str]:
        """What has to be the same on all machines for the same results."""


Results = Iterator[tuple[int, Any]]  # index, and a result or Failed; in any order
Map = Callable[[Work, Iterable[Item]], Results]


def one_by_one(work: Work, items: Iterable[Item]) -> Results:
    """In this process, in their order."""
    done = work.here()
    for item in items:
        yield item.index, done(item.path, item.known)


def read(path: Path, limits: Limits) -> tuple[Image.Image, int] | Failed:
    """A picture, and how many bytes its file has."""
    try:
        return open_picture(path, limits), os.path.getsize(path)
    except (PictureError, OSError) as error:
        return Failed(str(error), unread=True)
