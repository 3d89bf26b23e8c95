"""The host's TorchCompileModel on our MODEL: one graph, whatever the prompt."""

from __future__ import annotations

import pytest

from tests.host import inside


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return inside.run("compile_inside.py", tmp_path_factory.mktemp("compile"))


def test_no_graph_break_in_a_block(found: dict) -> None:
    """A block compiles as one graph, and a whole forward breaks only where it looks into the run's memo."""
    assert found["block"]
    assert all("S3DiT.prepare" in reason for reason in found["breaks"]), found["breaks"]


def test_no_new_graph_for_another_prompt(found: dict) -> None:
    """Prompts of 21, 30, 70 and 130 tokens run on what was compiled for the first."""
    assert len(found["graphs"]) == 4
    assert len(set(found["graphs"].values())) == 1, found["graphs"]


def test_the_same_latents(found: dict) -> None:
    assert all(distance <= 1e-5 for distance in found["distances"].values()), found["distances"]
