"""The one error that every reader here raises."""

from collections.abc import Iterable


class WeightsError(ValueError):
    """A file that cannot be used: the message names it, what was found, what was expected and what to do."""


def some(items: Iterable[str], count: int = 3) -> str:
    """The first few, and how many more."""
    items = list(items)
    return "; ".join(items[:count]) + (f"; and {len(items) - count} more" if len(items) > count else "")
