"""Pictures with captions, how often each counts, and why one was dropped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CAPTION = "caption"  # the kind of one that nobody named a kind for


class DataError(ValueError):
    """A data set that cannot be used; the message names it, what was found and what to do."""


@dataclass(frozen=True)
class PictureRecord:
    """One picture. `kinds` names each caption's kind where that is known; `drop` says why it is left out."""

    path: Path
    captions: tuple[str, ...] = ()
    repeats: int = 1
    weight: float = 1.0
    kinds: tuple[str, ...] = ()
    drop: str = ""
    size: tuple[int, int] = (0, 0)  # width and height in pixels, upright

    @property
    def by_kind(self) -> dict[str, str]:
        """The first caption of each kind."""
        kinds = self.kinds or (CAPTION,) * len(self.captions)
        return dict(reversed(list(zip(kinds, self.captions, strict=True))))


@dataclass(frozen=True)
class DataSet:
    """All records of a source, and what was wrong with it, a line each."""

    records: tuple[PictureRecord, ...]
    problems: tuple[str, ...] = ()

    @cached_property
    def pictures(self) -> tuple[PictureRecord, ...]:
        """Those that are not dropped."""
        return tuple(record for record in self.records if not record.drop)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the pictures' bytes, captions, repeats and weights, wherever the files lie.

        Reads every file. Raises DataError where one is gone.
        """
        digests = sorted(_digest(record) for record in self.pictures)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(record: PictureRecord) -> bytes:
    digest = hashlib.sha256()
    try:
        with open(record.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{record.path} cannot be read: {error.strerror}.") from None
    counted = [list(record.captions), record.repeats, record.weight]
    digest.update(json.dumps(counted).encode())
    return digest.digest()
