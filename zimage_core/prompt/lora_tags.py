"""LoRAs named in a prompt: <lora:name>, <lora:name:strength> or <lora:name:on the model:on the clip>."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_TAG = r"<lora:([^<>\n]*)>"
# A tag that is an item of a list, with one of its commas; else with the spaces before it.
_ITEM = re.compile(rf"[ \t]*,?[ \t]*{_TAG}(?=[ \t]*(?:,|$))|[ \t]*{_TAG}", re.MULTILINE)
_LEFT_OVER = re.compile(r"^[ \t]*,?[ \t]*", re.MULTILINE)


class LoraTag(NamedTuple):
    """name: as written; the strengths on the model and on the text encoder."""

    name: str
    model: float
    clip: float


class LoraTagError(ValueError):
    """A tag whose name or strength cannot be read."""


def without_lora_tags(text: str) -> tuple[str, list[LoraTag]]:
    """The prompt without its tags, and these in order. Raises LoraTagError."""
    tags = [_read(match[1] if match[1] is not None else match[2], match[0]) for match in _ITEM.finditer(text)]
    if not tags:
        return text, []
    lines = []
    for line in text.split("\n"):
        left = _ITEM.sub("", line)
        lines.append(left if left == line else _LEFT_OVER.sub("", left, count=1).rstrip())
    return "\n".join(lines), tags


def _read(body: str, written: str) -> LoraTag:
    name, *strengths = (part.strip() for part in body.split(":"))
    try:
        numbers = [float(strength) for strength in strengths] or [1.0]
    except ValueError:
        numbers = []
    if not name or not 1 <= len(numbers) <= 2 or not all(map(math.isfinite, numbers)):
        raise LoraTagError(
            f"{written.strip(', ')[:80]} cannot be read: expected <lora:name:0.8> with the name of a file "
            "and its strength as a number, or two for model and clip. Correct it in the prompt."
        )
    return LoraTag(name, numbers[0], numbers[-1])
