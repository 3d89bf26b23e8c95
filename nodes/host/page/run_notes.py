"""What a run has to say: for the node that asks for it, else under the node that runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

from comfy_api.latest import io, ui
from comfy_execution.utils import get_executing_context

from .progress import show_text, take_text_away

_collected: ContextVar[list[str] | None] = ContextVar("zimage_run_notes", default=None)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """The notes of all runs within, in order and without repeats."""
    notes: list[str] = []
    token = _collected.set(notes)
    try:
        yield notes
    finally:
        _collected.reset(token)


def tell(notes: Iterable[str]) -> None:
    """For the node that collects them, else under whatever node runs now; and into the log."""
    notes = list(notes)
    for note in notes:
        logging.warning("Z-Image: %s", note)
    collecting = _collected.get()
    if collecting is None:
        _show(notes)
    else:
        collecting += [note for note in notes if note not in collecting]


def with_notes(notes: list[str], *results: object) -> io.NodeOutput:
    """The results of a node that says these under it, if any."""
    _show(notes)
    return io.NodeOutput(*results, ui=ui.PreviewText("\n".join(notes)) if notes else None)


def _show(notes: list[str]) -> None:
    running = get_executing_context()
    if running is None:
        return
    if notes:
        show_text(running.node_id, "\n".join(notes))
    else:
        take_text_away(running.node_id)
