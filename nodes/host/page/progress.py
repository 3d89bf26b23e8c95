"""Words from a node to the page while it runs."""

from __future__ import annotations

import re
import time

import comfy.utils
from server import PromptServer

from ....zimage_core.prompt.syntax import whole_letters

LIVE_TEXT = "zimage.text"  # the event that web/enhancer.js writes into its node
# Events for web/notes.js: a text was written under a node, and a text of before is to go.
SHOWN, NOTHING_TO_SAY = "zimage.text_shown", "zimage.nothing_to_say"
MARKS = re.compile(r"[&<>_*`~]")
PAUSE = 0.1  # seconds between two of them


def plain(text: str) -> str:
    """The text for a page that takes it for HTML, and in Nodes 2.0 for Markdown: its marks as entities.

    There two spaces before the end of a line keep it.
    """
    return MARKS.sub(lambda mark: f"&#{ord(mark[0])};", text).replace("\n", "  \n")


def show_text(node_id: str | None, text: str) -> None:
    """Write text under a node; nothing happens where there is no page."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        # Without the client's name every open page would get it, and show it on its own node of that id.
        server.send_progress_text(plain(whole_letters(text)), node_id, server.client_id)
        server.send_sync(SHOWN, {"node": node_id}, server.client_id)


def take_text_away(node_id: str) -> None:
    """What a run before wrote under a node; nothing happens where there is no page."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(NOTHING_TO_SAY, {"node": node_id}, server.client_id)


class LiveText:
    """A text that grows on its node, and the progress bar beside it. Called with all the text so far."""

    def __init__(self, node_id: str | None, most_steps: int) -> None:
        self.node_id = node_id
        self.bar = comfy.utils.ProgressBar(most_steps)
        self.last = 0.0

    def __call__(self, text: str) -> None:
        self.bar.update(1)
        server = getattr(PromptServer, "instance", None)
        if server is not None and self.node_id is not None and time.monotonic() >= self.last + PAUSE:
            server.send_sync(LIVE_TEXT, {"node": self.node_id, "text": text}, server.client_id)
            self.last = time.monotonic()
