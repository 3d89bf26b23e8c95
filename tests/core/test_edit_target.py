"""What a language model's answer must be to become the target of an edit, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zimage_core.prompt.edit_target import edit_prompts, messages
from zimage_core.prompt.enhancer import Draft, WriterFailed
from zimage_core.prompt.instruction import NotUnderstood, Prompts, prompts_of

EVERYDAY = json.loads(Path(__file__).with_name("edit_cases.json").read_text(encoding="utf-8"))
ANSWERS = json.loads(Path(__file__).with_name("edit_answers.json").read_text(encoding="utf-8"))
SOURCE = EVERYDAY["en"]["source"]


class StandIn:
    """Answers every request alike, and keeps the requests."""

    def __init__(self, text: str, ended: bool = True) -> None:
        self.text, self.ended, self.asked = text, ended, []

    def __call__(self, asked: list[dict], seed: int) -> Draft:
        self.asked.append(asked)
        return Draft(self.text, "9 tokens read, 7 written", self.ended)


@pytest.mark.parametrize(
    ("language", "number"),
    [(language, n) for language in ("en", "zh") for n in range(len(EVERYDAY[language]["cases"]))],
)
def test_every_everyday_instruction_may_be_written(language: str, number: int) -> None:
    """Also those that the patterns refuse; the answer stands as it is."""
    case, source = EVERYDAY[language]["cases"][number], EVERYDAY[language]["source"]
    answer = ANSWERS[language]["written"][number]
    write = StandIn(answer)
    prompts, note = edit_prompts(case["instruction"], source, write)
    assert prompts == Prompts(source, answer, "written")
    assert note == "Target by the text encoder: 9 tokens read, 7 written."
    (asked,) = write.asked
    assert source in asked[-1]["content"] and case["instruction"] in asked[-1]["content"]


def test_both_languages_have_an_answer_for_each_case() -> None:
    assert [len(ANSWERS[x]["written"]) for x in ("en", "zh")] == [
        len(EVERYDAY[x]["cases"]) for x in ("en", "zh")
    ]
    assert [len(EVERYDAY[x]["cases"]) for x in ("en", "zh")] == [13, 13]


@pytest.mark.parametrize(
    "wrapped", ['"{}"', "```\n{}\n```", "Here is the new description:\n\n{}", "<think>x</think>{}"]
)
def test_what_models_put_around_an_answer_is_taken_off(wrapped: str) -> None:
    answer = ANSWERS["en"]["written"][0]
    assert edit_prompts("make her smile", SOURCE, StandIn(wrapped.format(answer)))[0].target == answer


@pytest.mark.parametrize(("answer", "reason"), ANSWERS["unusable"])
def test_an_answer_that_cannot_be_used_goes_back_to_the_patterns(answer: str, reason: str) -> None:
    prompts, note = edit_prompts("make her smile", SOURCE, StandIn(answer))
    assert prompts == prompts_of("make her smile", SOURCE)
    assert note == f"The text encoder's answer is not used: {reason}. Target by the patterns."


def test_an_answer_that_is_cut_off_goes_back_to_the_patterns() -> None:
    prompts, note = edit_prompts("make her smile", SOURCE, StandIn(ANSWERS["en"]["written"][0], ended=False))
    assert prompts == prompts_of("make her smile", SOURCE) and "it was cut off" in note


def test_what_neither_understands_is_refused_with_both_reasons() -> None:
    with pytest.raises(
        NotUnderstood, match='"zoom out".*Say it like.*answer is not used: the answer is empty'
    ):
        edit_prompts("zoom out", SOURCE, StandIn(" "))


def test_both_texts_are_on_one_line() -> None:
    """So that they differ in what was changed alone."""
    source, answer = "a fox in a wood,\n\nsoft light, photo", "a smiling fox in a wood,\n\nsoft light, photo"
    prompts, _ = edit_prompts("make it smile", source, StandIn(answer))
    assert [prompts.source, prompts.target] == [text.replace("\n\n", " ") for text in (source, answer)]


def test_a_writer_that_fails_is_no_end() -> None:
    def fail(*_) -> Draft:
        raise WriterFailed("it broke")

    prompts, note = edit_prompts("make her smile", SOURCE, fail)
    assert prompts == prompts_of("make her smile", SOURCE) and "it broke" in note


def test_without_a_source_nothing_is_written_and_the_refusal_says_how() -> None:
    write = StandIn(SOURCE)
    with pytest.raises(NotUnderstood, match="description of the picture in source_prompt"):
        edit_prompts("make her smile", " ", write)
    assert edit_prompts("add a hat", "", write)[0] == prompts_of("add a hat")
    assert write.asked == []


def test_the_patterns_alone_say_so() -> None:
    assert edit_prompts("make her smile", SOURCE, None) == (
        prompts_of("make her smile", SOURCE),
        "Target by the patterns.",
    )


@pytest.mark.parametrize(
    ("source", "instruction", "answer", "lost"),
    [
        (
            'a door with a sign "OPEN", 2 m wide',
            "make the door red",
            'a red door with a sign "OPEN", 2 m wide',
            None,
        ),
        ('a door with a sign "OPEN", 2 m wide', "make the door red", "a red door, a wide sign", "OPEN, 2 m"),
        ("a wooden door", 'write "OPEN" on the door', 'a wooden door with the text "OPEN"', None),
        ("a wooden door", 'write "OPEN" on the door', 'a wooden door with the text "CLOSED"', "OPEN"),
        ('a door, "OPEN"', 'replace "OPEN" with "CLOSED"', 'a door, "CLOSED"', None),
    ],
)
def test_quoted_texts_and_measures_that_got_lost_are_named(source, instruction, answer, lost) -> None:
    prompts, note = edit_prompts(instruction, source, StandIn(answer))
    assert prompts.target == answer
    assert note.partition("; not in it: ")[2].rstrip(".") == (lost or "")


def test_a_whole_description_may_take_the_place_of_the_source() -> None:
    """The language model gives it back; it shares nothing with the source."""
    text = "an apple on a hill, oil painting"
    assert edit_prompts(text, SOURCE, StandIn(f"{text}."))[0].target == f"{text}."


def test_the_request_is_in_the_language_of_the_source() -> None:
    zh, en = (messages("{source}", EVERYDAY[x]["source"])[0]["content"] for x in ("zh", "en"))
    assert not zh.isascii() and en.isascii()
    assert messages("{source}", "a {instruction}")[1]["content"].count("a {instruction}") == 1
