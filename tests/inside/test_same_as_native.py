"""Our MODEL and the host's own Z-Image make the same latents from the same weights, seed and sampler."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import parity, parity_in_host


@pytest.fixture(scope="module")
def found(scratch: Path) -> dict:
    return parity_in_host.measure(scratch)


def test_networks_and_runs(found: dict) -> None:
    """One forward, with full and grouped-query attention, at even and odd sizes.

    Through the host's sampler eight steps at dim 3840, and a guided run with captions of two lengths, plain
    and with ZImageDiversity.
    """
    rows = parity.native_rows(found)
    assert len(rows) == 4 + 3 and all(row["bar"] for row in rows)
    assert all(row["holds"] for row in rows), rows


def test_a_run_computes_once_what_it_repeats(found: dict) -> None:
    """Through the host's sampler: 8 steps with one caption, then twice 2 guided steps with two captions.

    The second time a varied one stands before the positive.
    """
    assert found["counts"] == {"Block": 1 + 2 + 3, "TimestepEmbedder": 8 + 2 + 2}


def test_diversity_acts_on_the_hosts_own_model(found: dict) -> None:
    assert found["variety"] > 1e-3
