"""Omni weights in the host: reference pictures reach our MODEL, and are what they are elsewhere."""

from __future__ import annotations

import pytest

from tests.host import inside


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Measured in a process of the host's own."""
    return inside.run("omni_inside.py", tmp_path_factory.mktemp("omni"))


def test_a_run_is_the_library_s(found: dict) -> None:
    """A guided run with two references through the host's sampler, on hosts old and new."""
    assert found["by hand"] <= 1e-5
    assert found["effect"] > 1e-2, "the references change nothing: this proves nothing"
    assert found["batch"] <= 1e-5


def test_a_run_is_the_host_s_own(found: dict) -> None:
    """Networks and whole runs, also by Accelerate on the host's network; older hosts have no omni model."""
    if "networks" not in found:
        assert found["vision"]["host's own"] is False
        return
    assert len(found["networks"]) == 10
    assert all(distance <= 1e-5 for distance in found["networks"].values()), found["networks"]
    assert found["native"] <= 1e-5
    assert found["accelerated"] <= 1e-5


def test_what_the_references_need_is_computed_once(found: dict) -> None:
    """Two prompts, two steps."""
    assert found["counts"] == {"siglip_refiner": 2, "context_refiner": 2, "noise_refiner": 4}


def test_positive_and_negative_share_a_batch_for_patches_that_compare_them(found: dict) -> None:
    assert found["joined"]["distance"] <= 1e-5
    assert set(found["joined"]["batches"]) == {2}


def test_patches_see_the_picture_alone(found: dict) -> None:
    """8 x 12 latent cells are 24 tokens, padded to 32; the timestep is that of the noisy tokens."""
    assert found["patches"]["seen"] == [[32, 32, 32, 1]]
    assert found["patches"]["effect"] > 1e-2
    assert found["patches"]["replaced by itself"] <= 1e-6


def test_other_weights_say_that_they_take_no_references(found: dict) -> None:
    assert found["ignored"] == {"equal": True, "said": True}


def test_a_picture_becomes_a_conditioning(found: dict) -> None:
    """By the host's SigLIP 2 where it has one, whose norms have another epsilon; else by ours."""
    vision = found["vision"]
    assert vision["features"] <= (2e-3 if vision["host's own"] else 1e-6)
    assert vision["sizes"] == [[12, 16], [12, 18]]  # 300 x 200 pixels shrink to the area of 128 x 128
    assert vision["no pictures"] == 0.0
    assert vision.get("host's node", 0.0) <= 1e-6
