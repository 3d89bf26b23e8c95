"""Node schemas that every supported host takes: what an older one does not know is left out."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io


def supported(make: Any, *args: Any, **kwargs: Any) -> Any:
    """make(*args, **kwargs) without the keywords that this host's `make` has no parameter for."""
    accepted = inspect.signature(make).parameters
    return make(*args, **{k: v for k, v in kwargs.items() if k in accepted})


def schema(**kwargs: Any) -> io.Schema:
    return supported(io.Schema, **kwargs)


def advanced(kind: Any, name: str, **settings: Any) -> io.Input:
    """An input that pages fold away; kind: io.Float and its like."""
    made = supported(kind.Input, name, advanced=True, **settings)
    if not hasattr(made, "advanced"):  # an older host hands on to the page what it does not know itself
        made.extra_dict["advanced"] = True
    return made
