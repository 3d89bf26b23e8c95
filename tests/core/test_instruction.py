"""Edit instructions in English and Chinese: what is read from them, and what is not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from zimage_core.prompt.instruction import Prompts, prompts_of

CASES = json.loads(Path(__file__).with_name("instructions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_instructions(case: dict) -> None:
    derived = case["kind"] is not None and not case["given"]
    expected = Prompts(case["source"], case["target"], case["kind"], derived)
    assert prompts_of(case["instruction"], case["given"]) == expected


def test_both_languages_have_every_kind() -> None:
    kinds = {(case["instruction"].isascii(), case["kind"]) for case in CASES}
    every = {"replace", "attribute", "add", "remove", "style", None}
    assert kinds == {(ascii, kind) for ascii in (True, False) for kind in every}


def test_case_and_punctuation_do_not_matter() -> None:
    plain = prompts_of("replace the fox with an apple", "a fox on a hill")
    assert prompts_of('  Please  REPLACE the Fox\nwith an apple!" ', "a fox on a hill") == plain


def test_a_description_with_a_source_is_what_it_says() -> None:
    assert prompts_of("an apple on a hill", "a fox") == Prompts("a fox", "an apple on a hill", None)


@pytest.mark.parametrize("text", ["turn a to " * 5000, "change the color of " + "a from b to c " * 5000])
def test_endless_texts_are_descriptions_and_take_no_time(text: str) -> None:
    begun = time.monotonic()
    assert prompts_of(text).kind is None
    assert time.monotonic() - begun < 2
