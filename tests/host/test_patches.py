"""Patches that the host's own Z-Image ignores have their effect on ours."""

from __future__ import annotations

import pytest

from tests.host import inside

CLOSE = 1e-5  # relative L2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return inside.run("patches_inside.py", tmp_path_factory.mktemp("patches"))


def test_nag_is_what_the_paper_says(found: dict) -> None:
    """Positive and negative of different lengths, in one batch, at cfg 1 as for Turbo, by the core node where
    the host has it; against the formula in float64 on the same q, k and v.
    """
    assert found["nag"]["distance"] <= CLOSE
    assert found["nag"]["effect"] > 1e-2


def test_captions_of_two_lengths_in_one_batch(found: dict) -> None:
    """Two guided steps: one call each where a patch looks at attention, else one for each caption."""
    assert found["batches"]["calls"] == {"apart 1": 4, "together 2": 2}
    assert found["batches"]["distance"] <= CLOSE


def test_a_patch_does_what_the_same_change_elsewhere_does(found: dict) -> None:
    """attn1_patch, patches_replace under both names, double_block and noise_refiner."""
    assert len(found["equalities"]) == 8
    assert all(distance <= CLOSE for distance in found["equalities"].values()), found["equalities"]
