"""The styles that the style node offers: those that come along, and those of the host's owner."""

from __future__ import annotations

import logging
from pathlib import Path

from ....zimage_core.prompt.styles import StyleError, Styles, built_in, read_styles
from .own_files import own_folder


def own_file() -> Path:
    return own_folder() / "styles.json"


def styles() -> Styles:
    """The built-in ones and, after them, people's own; an own one of the same name takes its place.

    A file that cannot be read is an error in the log, and the built-in ones stay.
    """
    try:
        return built_in() | _own()
    except StyleError as error:
        logging.error("Z-Image styles: %s", error)
        return built_in()


def style(name: str) -> dict[str, str]:
    """The words of a style. Raises StyleError, also where the owner's file cannot be read."""
    known = built_in()
    if name not in known or own_file().exists():
        known |= _own()
    if name not in known:
        raise StyleError(
            f"There is no style {name!r}: it is neither built in nor in {own_file()}. Choose another one, or "
            "add it to that file."
        )
    return known[name]


def _own() -> Styles:
    return read_styles(own_file()) if own_file().exists() else {}
