"""ZImageAccelerate on MODELs of any loader: the same picture from the same tensors."""

from __future__ import annotations

import pytest

from tests.host import inside

KINDS = ["fp32", "bf16", "fp8", "packed operations"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return inside.run("accelerate_inside.py", tmp_path_factory.mktemp("accelerate"))


@pytest.mark.parametrize("kind", KINDS)
def test_same_picture_from_the_same_tensors(found: dict, kind: str) -> None:
    row = found["models"][kind]
    assert row["distance"] <= 1e-5
    assert row["shared"], "the weights exist twice"
    assert row["captions"] == [2, 1], "in two steps the host embeds its caption twice, ours once"
    assert row["restored"] and row["same again"] == 0.0, "the given MODEL is not what it was"


def test_the_loaders_own_operations_do_the_work(found: dict) -> None:
    """As a GGUF loader needs it: only its layers know what their weights mean."""
    assert found["models"]["packed operations"]["packed calls"] > 0


def test_what_is_no_z_image_is_named(found: dict) -> None:
    assert "Linear" in found["refusal"] and "not Z-Image" in found["refusal"]


def test_clones_and_repetition(found: dict) -> None:
    assert found["fresh clone"] in (True, None)  # None: this host makes no such clones
    assert found["twice"]
