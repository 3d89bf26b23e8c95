"""The one error that every reader here raises."""

import re
from collections.abc import Iterable

LONGEST = 160  # letters of a name in a message
SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.safetensors$")


class WeightsError(ValueError):
    """A file that cannot be used: the message names it, what was found, what was expected and what to do."""


def incomplete(name: str) -> str:
    """What to do about a file with parts missing."""
    if SHARD.search(name):
        return "It is one of several shards: choose the folder in which they and their index lie."
    return "It is incomplete or of another model: download it again or choose another file."


def some(items: Iterable[str], count: int = 3) -> str:
    """The first few, each cut to LONGEST letters, and how many more."""
    items = list(items)
    named = "; ".join(item[:LONGEST] for item in items[:count])
    return named + (f"; and {len(items) - count} more" if len(items) > count else "")
