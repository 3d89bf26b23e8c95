"""How the page names the errors of this extension."""

from __future__ import annotations

import sys

PACKAGE = __name__.rsplit(".", 4)[0]  # of the whole extension; ComfyUI makes it from the folder's path


def bare_names() -> None:
    """Every error class of this extension is called by its own name only.

    ComfyUI puts an error's class before its message, and before the class its module unless that is builtins.
    The module of an extension is the path of its folder, which takes the room that the message needs.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != PACKAGE:
            continue
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, Exception) and item.__module__ == name:
                item.__module__ = "builtins"
