"""One run in a folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises ValueError where another run, of this process or another, works in the folder.

    A run that was killed holds nothing. Disks that know no locks are taken as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "ab") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another run trains in {folder}: wait until it ends, or give this one another name"
            ) from None
        except OSError:
            pass
        yield
