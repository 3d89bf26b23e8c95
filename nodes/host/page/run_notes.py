"""What a run has to say: for the node that asks for it, else under the node that runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from ....zimage_core.prompt.syntax import whole_letters
from .progress import show_text, take_text_away


@dataclass
class Collected:
    """The notes of the runs of one node; before: what stands above them."""

    before: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(filter(None, (self.before, *self.notes)))


_collected: ContextVar[Collected | None] = ContextVar("zimage_run_notes", default=None)


@contextlib.contextmanager
def collected(before: str = "") -> Iterator[Collected]:
    """All that runs within have to say, in order and without repeats; it is shown as it comes."""
    found = Collected(before)
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """All that a run within says stands together, also under a node that does not ask for it."""
    with contextlib.nullcontext() if _collected.get() else collected():
        yield


def tell(notes: Iterable[str]) -> None:
    """Under the node that runs now, below what it said before; and into the log."""
    found = _collected.get() or Collected()
    for note in map(whole_letters, notes):  # the host does not survive a log that cannot be written
        logging.warning("Z-Image: %s", note)
        if note not in found.notes:
            found.notes.append(note)
    _show(found.text)


def with_notes(text: str, *results: object) -> io.NodeOutput:
    """The results of a node that says this under it, if anything."""
    _show(text)
    return io.NodeOutput(*results, ui=ui.PreviewText(text) if text else None)


def _show(text: str) -> None:
    running = get_executing_context()
    if running is None:
        return
    if text:
        show_text(running.node_id, text)
    else:
        take_text_away(running.node_id)
