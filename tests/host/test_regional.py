"""Prompts for regions, from the node to the picture."""

from __future__ import annotations

import pytest

from tests.host import inside

CLOSE = 1e-5  # relative L2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return inside.run("regional_inside.py", tmp_path_factory.mktemp("regional"))


def test_the_nodes_do_what_the_library_does(found: dict) -> None:
    """Two Euler steps; also masks of other sizes, odd latents, batches, and a MODEL of another loader."""
    assert len(found["distances"]) == 9
    assert all(distance <= CLOSE for distance in found["distances"].values()), found["distances"]


def test_a_conditioning_for_an_area_has_that_part_of_the_mask(found: dict) -> None:
    assert found["area"]["distance"] == 0.0


def test_guidance_and_attention_patches(found: dict) -> None:
    """Two guided steps: a patch that compares positive and negative finds both in one batch."""
    assert found["together"]["calls"] == {"apart 1": 8, "together 2": 4}
    assert all(distance <= CLOSE for distance in found["together"]["distances"].values()), found["together"]


def test_an_attention_that_leaves_masks_out_is_not_used(found: dict) -> None:
    assert found["sage"] <= CLOSE


def test_nothing_is_ignored_in_silence(found: dict) -> None:
    refusals = found["refusals"]
    assert "Accelerate" in refusals["the host's own network"]
    assert "chain" in refusals["a region of regions"]
    assert "2 prompts" in refusals["several prompts"]
    assert "7 wide" in refusals["another text encoder"]
