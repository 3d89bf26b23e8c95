"""A text as a list of values: numbers, or one text a line."""

from __future__ import annotations

import math
import re

MOST = 64  # values


def values_of(text: str) -> list[str]:
    """One value a line; a line of nothing but numbers and commas has several. Raises ValueError."""
    values: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        parts = [part for part in re.split(r"[,\uff0c\s]+", line) if part]
        values += parts if parts and all(number(part) is not None for part in parts) else [line]
    if not values:
        raise ValueError("there are no values: write one a line, or numbers with commas between them.")
    if len(values) > MOST:
        raise ValueError(f"{len(values)} values; at most {MOST} in one run.")
    return values


def number(value: str) -> float | None:
    """The finite number that a value is, else None."""
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def integer(value: str) -> int | None:
    """The whole number that a value is, exactly, else None."""
    return int(value) if re.fullmatch(r"[+-]?[0-9]{1,20}", value) else None
