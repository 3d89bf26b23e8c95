"""Edit instructions in English and Chinese: what is read from them, and what is not."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from zimage_core.prompt import instruction
from zimage_core.prompt.instruction import NotUnderstood, Prompts, prompts_of

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


EVERYDAY = json.loads(Path(__file__).with_name("edit_cases.json").read_text(encoding="utf-8"))
PATTERNS = json.loads((Path(instruction.__file__).with_suffix(".json")).read_text(encoding="utf-8"))
EVERYDAY_CASES = [
    pytest.param(language, case, id=f"{language}-{number}")
    for language in ("en", "zh")
    for number, case in enumerate(EVERYDAY[language]["cases"] + EVERYDAY[language]["more"])
]


def refused(language: str, why: str, text: str, source: str) -> None:
    """Refused for this reason, with an example of what would be understood."""
    with pytest.raises(NotUnderstood) as error:
        prompts_of(text, source)
    begins = PATTERNS[language]["refusals"][why].partition("{")[0]
    assert begins and str(error.value).startswith(begins)
    assert "target_prompt" in str(error.value) or "source_prompt" in str(error.value)


@pytest.mark.parametrize(("language", "case"), EVERYDAY_CASES)
def test_everyday_instructions_are_right_or_refused(language: str, case: dict) -> None:
    """With a text of the picture, and without one where the case says what is expected then."""
    source, text = EVERYDAY[language]["source"], case["instruction"]
    if "refused" in case:
        refused(language, case["refused"], text, source)
    else:
        made = prompts_of(text, source)
        assert (made.source, made.target) == (source, case["target"]) and made.kind
    alone = case.get("alone")
    if isinstance(alone, str):
        refused(language, alone, text, "")
    elif alone:
        made = prompts_of(text)
        assert [made.source, made.target] == alone and made.derived


@pytest.mark.parametrize("language", ["en", "zh"])
def test_descriptions_stay_descriptions(language: str) -> None:
    """Also those that begin like an instruction."""
    for text in EVERYDAY[language]["descriptions"]:
        for source in ("", EVERYDAY[language]["source"]):
            assert prompts_of(text, source) == Prompts(source or None, text, None)


def test_quoted_texts_keep_their_marks() -> None:
    assert prompts_of('"an apple"').target == "an apple"
    assert prompts_of('write "OPEN"', "a door").target == 'a door, with the text "OPEN"'
    assert prompts_of('replace "OPEN" with "CLOSED".', 'a sign "OPEN"').target == 'a sign "CLOSED"'


def test_what_is_said_can_be_written_into_a_log() -> None:
    """JSON may hold one half of an emoji; a host that cannot write its log runs nothing more."""
    with pytest.raises(NotUnderstood) as error:
        prompts_of("zoom \ud83d out", "half \ud83d")
    assert "zoom ? out" in str(error.value)
    assert "\ud83d" not in prompts_of("a fox \ud83d on a hill").target


@pytest.mark.parametrize("source", ["", "a woman in a red dress"])
@pytest.mark.parametrize("text", ["remove the", "replace a with an", "change the to blue"])
def test_an_article_alone_names_nothing(text: str, source: str) -> None:
    with pytest.raises(NotUnderstood, match=text):
        prompts_of(text, source)
