"""Words from a node to the page while it runs."""

from __future__ import annotations

from server import PromptServer


def show_text(node_id: str | None, text: str) -> None:
    """Write text under a node; nothing happens where there is no page."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
