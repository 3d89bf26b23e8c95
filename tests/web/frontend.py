"""Where the pages of the supported hosts differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frontend:
    """One generation of ComfyUI's page; where nothing else is said, the texts are CSS selectors."""

    alarm: str  # appears when nodes are missing, and when a run fails
    to_details: str | None  # in the alarm: leads to what went wrong, where the alarm itself does not say it
    details: str
    toast: str  # says in short that a run failed, and of our nodes why
    missing_nodes: str  # what the details then say, as text
    option_labels: bool  # whether Nodes 2.0 shows labels of options; a canvas always does
    text_by_preview: bool  # Nodes 2.0 shows a text on a node that has a live preview too


# The oldest version with these properties -> the properties.
FRONTENDS = {
    (1, 32): Frontend(
        "[role=dialog]",
        None,
        "[role=dialog]",
        ".p-toast-message-error",
        "This workflow has missing nodes",
        option_labels=False,
        text_by_preview=False,
    ),
    (1, 49): Frontend(
        "[data-testid=error-overlay], [role=dialog]",
        "[data-testid=error-overlay-see-errors]",
        "[data-testid=properties-panel]",
        "[data-testid=error-overlay]",
        "Missing Node Packs",
        option_labels=True,
        text_by_preview=True,
    ),
}


def frontend(version: str) -> Frontend:
    """The properties of a page by its version, such as "1.49.6"."""
    numbers = tuple(int(part) for part in version.split(".")[:2])
    return FRONTENDS[max(known for known in FRONTENDS if known <= numbers)]
