"""Every distance of `bench parity` from diffusers and from an independent float64 forward holds."""

from __future__ import annotations

import pytest

from bench import parity


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return parity.library_rows()


def test_every_distance_holds(rows: list[dict]) -> None:
    """fp32 at four shapes and at the real width, bf16, and eight steps."""
    assert len(rows) == 6 and all(row["bar"] for row in rows)
    assert all(row["holds"] for row in rows), rows
