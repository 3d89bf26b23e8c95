"""The prompt is found in an answer however a model wraps it, and is left as it is otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zimage_core.prompt.answer import AnswerError, read_answer

CASES = json.loads(Path(__file__).with_name("answers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "answer, prompt", [case[1:] for case in CASES["understood"]], ids=[c[0] for c in CASES["understood"]]
)
def test_the_prompt_in_an_answer(answer: str, prompt: str) -> None:
    assert read_answer(answer) == prompt


@pytest.mark.parametrize(
    "answer, reason", [case[1:] for case in CASES["refused"]], ids=[c[0] for c in CASES["refused"]]
)
def test_an_answer_without_a_prompt(answer: str, reason: str) -> None:
    with pytest.raises(AnswerError, match=reason):
        read_answer(answer)


def test_a_prompt_is_its_own_answer() -> None:
    """What was understood once stays as it is."""
    for _, _, prompt in CASES["understood"]:
        assert read_answer(prompt) == prompt
