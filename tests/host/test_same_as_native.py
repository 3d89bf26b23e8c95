"""Our MODEL and the host's own Z-Image make the same latents from the same weights, seed and sampler."""

from __future__ import annotations

import pytest

from tests.host import inside


@pytest.fixture(scope="module")
def distances(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """Relative L2 distances, measured in a process of the host's own."""
    return inside.run("native_parity.py", tmp_path_factory.mktemp("weights"))


def test_networks(distances: dict) -> None:
    """One forward, with full and grouped-query attention, at even and odd sizes."""
    assert len(distances["networks"]) == 4
    assert all(distance <= 1e-5 for distance in distances["networks"].values()), distances


def test_a_run_computes_once_what_it_repeats(distances: dict) -> None:
    """Through the host's sampler: 8 steps with one caption, then 2 guided steps with two captions, then
    the same with a varied one before the positive.
    """
    assert distances["counts"] == {"Block": 1 + 2 + 3, "TimestepEmbedder": 8 + 2 + 2}


def test_whole_runs(distances: dict) -> None:
    """Eight steps of the host's sampler at dim 3840, and a guided run with captions of two lengths, plain
    and with ZImageDiversity.
    """
    assert len(distances["runs"]) == 3
    assert all(distance <= 1e-4 for distance in distances["runs"].values()), distances


def test_diversity_acts_on_the_hosts_own_model(distances: dict) -> None:
    assert distances["variety"] > 1e-3
