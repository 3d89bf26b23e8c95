"""What of a prompt is looked for in its description: quoted texts, and numbers with their units."""

from __future__ import annotations

import json
import re
from pathlib import Path

_SPEC = json.loads(Path(__file__).with_name("kept.json").read_text(encoding="utf-8"))
QUOTED = re.compile("|".join(f"{left}([^{left}{right}]+){right}" for left, right in _SPEC["quotes"]))
_UNITS = "|".join(sorted(map(re.escape, _SPEC["units"]), key=len, reverse=True))
# A unit in Latin letters ends where its word ends, as a number begins where its digits begin.
_MEASURE = re.compile(rf"(?<![\d.,])(\d+(?:[.,]\d+)*)[\s-]?({_UNITS})(?![A-Za-z])")


def missing(prompt: str, answer: str) -> list[str]:
    """The quoted texts and the numbers with units of a prompt that do not stand in an answer.

    A text counts without its quotation marks, a number with or without a space before its unit.
    """
    texts = (next(filter(None, match.groups())).strip() for match in QUOTED.finditer(prompt))
    lost = [text for text in texts if text not in answer]
    given = {match.groups() for match in _MEASURE.finditer(answer)}
    lost += [match[0] for match in _MEASURE.finditer(prompt) if match.groups() not in given]
    return list(dict.fromkeys(lost))
