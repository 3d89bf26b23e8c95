"""The memory that the host sets aside for our MODEL is what it needs, and a little more."""

from __future__ import annotations

from bench import memory


def test_expected_and_needed() -> None:
    """512 to 2048 pixels, batch 1 to 4, short and long captions; counted on fake tensors where no GPU is."""
    found = memory.measure()
    ratios = [row["expected"] / row["peak"] for row in found["rows"]]
    assert len(ratios) == 16 + 3  # these with reference images
    assert memory.LOWEST <= min(ratios) and max(ratios) <= memory.HIGHEST, found["rows"]
