"""The Qwen3 in the host's CLIP writes and chooses as transformers', in every storage type, without a copy."""

from __future__ import annotations

import pytest

from tests.host.inside import run

NO_THOUGHT = [151667, 271, 151668, 271]  # as Qwen3's own chat template ends without thinking


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    return run("generate_inside.py", tmp_path_factory.mktemp("scratch"))


def test_greedy_tokens_and_choices_are_those_of_transformers(found) -> None:
    """By the host's own forward where it keeps a cache, and by ours over its modules, for any host."""
    assert {label: row["same"] for label, row in found.items()} == {
        label: {"chosen": True, "shell": True, "asked by the node": True} for label in found
    }
    assert {label.split(",")[0] for label in found} == {"float32", "bfloat16", "float8"}


def test_weights_are_shared_not_copied(found) -> None:
    for row in found.values():
        assert row["foreign bytes"] == 0
        assert row["shared bytes"] == row["bytes"] > 0


def test_text_is_heard_token_by_token(found) -> None:
    for row in found.values():
        assert row["text"] == row["expected text"] and row["text"]
        assert row["heard"] == 16
        assert "16 written, cut off" in row["note"]
        assert row["note of choices"] == f"{len(row['prompt'])} tokens read, 5 choices made"


def test_thinking_is_off_by_qwens_own_sign(found) -> None:
    """Also where the host's tokenizer does not know it: then it would be read as plain letters."""
    for row in found.values():
        assert row["prompt"][-4:] == NO_THOUGHT
