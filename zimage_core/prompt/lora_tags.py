"""LoRAs named in a prompt: <lora:name>, <lora:name:strength> or <lora:name:on the model:on the clip>."""

from __future__ import annotations

import re
from typing import NamedTuple

_TAG = re.compile(r"<lora:([^<>\n]*)>", re.IGNORECASE)
_ENDS_ITEM = re.compile(r"[ \t]*(?:,|$)")  # behind a tag that is an item of a list
_BEGUN = re.compile(r"<lora:[^\n]*", re.IGNORECASE)
_SPACES = " \t"
STRONGEST = 100.0  # what a widget takes, too


class LoraTag(NamedTuple):
    """name: as written; the strengths on the model and on the text encoder."""

    name: str
    model: float
    clip: float


class LoraTagError(ValueError):
    """A tag whose name or strength cannot be read."""


def without_lora_tags(text: str) -> tuple[str, list[LoraTag]]:
    """The prompt without its tags, and these in order. Raises LoraTagError."""
    tags = [_read(match[1], match[0]) for match in _TAG.finditer(text)]
    left = "\n".join(map(_without, text.split("\n"))) if tags else text
    if begun := _BEGUN.search(left):
        raise LoraTagError(
            f"{begun[0][:80]} cannot be read: a tag ends with > on its line, and no other is in it. Correct "
            "it in the prompt."
        )
    return left, tags


def _without(line: str) -> str:
    """A line without its tags: an item of a list goes with a comma, each with the spaces before it."""
    left, at = "", 0
    for tag in _TAG.finditer(line):
        before = line[at : tag.start()].rstrip(_SPACES)
        if _ENDS_ITEM.match(line, tag.end()):
            before = before.removesuffix(",").rstrip(_SPACES)
        left, at = left + before, tag.end()
    if at == 0:
        return line
    return (left + line[at:]).lstrip(_SPACES).removeprefix(",").strip()


def _read(body: str, written: str) -> LoraTag:
    name, *strengths = (part.strip() for part in body.split(":"))
    try:
        numbers = [float(strength) for strength in strengths] or [1.0]
    except ValueError:
        numbers = []
    if not name or not 1 <= len(numbers) <= 2 or not all(abs(n) <= STRONGEST for n in numbers):
        raise LoraTagError(
            f"{written.strip(', ')[:80]} cannot be read: expected <lora:name:0.8> with the name of a file "
            "and its strength as a number up to 100, or two for model and clip. Correct it in the prompt."
        )
    return LoraTag(name, numbers[0], numbers[-1])
