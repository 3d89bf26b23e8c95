"""The memory that the host sets aside for our MODEL is what it needs, and a little more."""

from __future__ import annotations

from bench import memory, memory_in_host


def test_expected_and_needed() -> None:
    """512 to 2048 pixels, batch 1 to 4, short and long captions; counted on fake tensors where no GPU is."""
    rows = memory.rows(memory_in_host.measure())
    assert sum(row["name"].startswith("expected / peak") for row in rows) == 16 + 3  # these with references
    assert not [row for row in rows if row["holds"] is False], rows
