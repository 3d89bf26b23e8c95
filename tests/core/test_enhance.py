"""What a language model is asked, when it is asked again, and what is told."""

from __future__ import annotations

import json

import pytest

from zimage_core.prompt.answer import AnswerError
from zimage_core.prompt.enhancer import (
    LARGEST_SEED,
    Draft,
    Request,
    WriterFailed,
    describe_faithfully,
    enhance,
    terms,
)
from zimage_core.prompt.faithful import offer
from zimage_core.prompt.kept import missing
from zimage_core.prompt.language import lost_words
from zimage_core.prompt.messages import LANGUAGES, PLAIN, TEMPLATES, as_chat, choose_template, compose

CHINESE = "\u4e00\u53ea\u72d0\u72f8"


class Answers:
    """A writer that gives these answers one after the other."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.asked = list(answers), []

    def __call__(self, messages: list[dict], seed: int) -> Draft:
        self.asked.append((messages, seed))
        return Draft(self.answers[len(self.asked) - 1], f"seed {seed}")


def test_an_answer_is_read() -> None:
    write = Answers(json.dumps({"revised_prompt": "A fox in snow."}))
    outcome = enhance(Request("a fox", "standard", seed=5), write)
    assert outcome.text == "A fox in snow." and outcome.notes == ["seed 5"]


def test_normal_asks_once_and_names_what_is_lacking() -> None:
    write = Answers("A dog with a sign, about 5mm, at 20 \u00b0C.")
    prompt = 'a fox, 5 mm high, 12 kg, at 20\u00b0C, with a sign "OPEN" and \u201cCLOSED\u201d'
    outcome = enhance(Request(prompt, "standard"), write)
    assert outcome.text == "A dog with a sign, about 5mm, at 20 \u00b0C."
    lost = "words of the prompt that the description lacks: fox, high"
    assert outcome.notes == ["seed 0", "not in the description: OPEN, CLOSED, 12 kg", lost]
    assert len(write.asked) == 1
    kept = enhance(Request(prompt, "standard"), Answers(f"Here it stands: {prompt}."))
    assert kept.notes == ["seed 0"]


@pytest.mark.parametrize(
    "prompt, answer, lacking",
    [
        ("a 5 m wall", "a 15 m wall", ["5 m"]),
        ("a 5 m wall", "a 5 mm wall", ["5 m"]),
        ("a 5 m wall", "a wall of 5m", []),
        ("a 35-mm lens", "a 35 mm lens", []),
        ("1,000 km at 3.5 %", "3.5% of 1,000 km", []),
        ("1,000 km at 3.5 %", "5% of 1,500 km", ["1,000 km", "3.5 %"]),
        ("3 cats in 2024", "two cats", []),
        ("5\u5398\u7c73\u7684\u676f\u5b50", "5 \u5398\u7c73\u9ad8", []),
        ("5\u5398\u7c73\u7684\u676f\u5b50", "5 \u7c73\u9ad8", ["5\u5398\u7c73"]),
        ("\u300c\u958b\u300d and \u00abferm\u00e9\u00bb", "'\u958b'", ["ferm\u00e9"]),
        ('"a" and "a" and ""', "b", ["a"]),
        ('a 5" nail', "a nail", []),
    ],
)
def test_quoted_texts_and_measures_are_looked_for_literally(prompt, answer, lacking) -> None:
    assert missing(prompt, answer) == lacking


def test_lost_terms_are_asked_for_once_more_and_then_the_prompt_stands_first() -> None:
    fixed = Request("a fox, Reynard", "standard", fixed=("Reynard", "fox"), seed=LARGEST_SEED)
    write = Answers("A dog.", "A fox, Reynard.")
    outcome = enhance(fixed, write)
    assert outcome.text == "A fox, Reynard."
    assert outcome.notes == [f"seed {LARGEST_SEED}", "fixed terms lost: Reynard, fox", "seed 0"]
    assert [seed for _, seed in write.asked] == [LARGEST_SEED, 0]

    write = Answers("A dog.", "A fox.", "not asked for")
    outcome = enhance(fixed, write)
    assert outcome.text == "a fox, Reynard\n\nA fox."
    assert len(write.asked) == 2 and "the prompt itself is put before the description" in outcome.notes

    outcome = enhance(Request("a fox", "standard", fixed=("Reynard",)), Answers("A fox.", "A fox."))
    assert outcome.text == "a fox\n\nA fox." and outcome.notes[-1] == "not in the description: Reynard"
    outcome = enhance(fixed, Answers("A fox.", ""))
    assert outcome.text == "a fox, Reynard\n\nA fox.", "what was written first is not lost"


def test_what_cannot_be_used_is_not_asked_for_again() -> None:
    write = Answers("<think>hm", "A fox.")
    outcome = enhance(Request("a fox", "standard", fixed=("fox",)), write)
    assert outcome.text is None and len(write.asked) == 1


def test_a_writer_that_fails_is_not_asked_again() -> None:
    def fail(*_) -> None:
        raise WriterFailed("no connection")

    for outcome in (enhance(Request("a fox", "standard"), fail), describe_faithfully(offer("a fox"), fail)):
        assert outcome.text is None and outcome.notes == ["no connection"]


def test_additions_are_asked_for_once_and_told() -> None:
    asked = []

    def choose(offered) -> tuple[dict, str]:
        asked.append(offered)
        return {slot: "with fine detail" for slot in offered.slots}, "asked"

    outcome = describe_faithfully(offer(" a fox\n"), choose, ("fox", "Reynard"))
    assert outcome.text == "a fox, with fine detail", "only where the list of the slot has it"
    assert outcome.notes == [
        "asked", "added: with fine detail", "fixed terms that are not in the prompt: Reynard",
    ]  # fmt: skip
    assert len(asked) == 1


def test_an_unusable_answer_adds_nothing() -> None:
    def choose(offered) -> None:
        raise AnswerError("the answer is empty")

    outcome = describe_faithfully(offer("a fox"), choose)
    assert outcome.text == "a fox"
    assert outcome.notes == ["no choice: the answer is empty", "added: nothing"]


def test_nothing_is_asked_where_nothing_is_open() -> None:
    def choose(offered) -> None:
        raise AssertionError

    full = "CT, centred, evenly exposed"
    assert describe_faithfully(offer(full), choose).text == full


def test_terms_are_split_at_commas_of_both_languages() -> None:
    assert terms(" Ada , \u5c0f\u660e\uff0cX-1,, ") == ("Ada", "\u5c0f\u660e", "X-1")


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != PLAIN])
def test_instructions_come_in_the_language_of_the_prompt(template: str) -> None:
    for prompt, other in (("a fox", CHINESE), (CHINESE, "a fox")):
        system, user = compose(prompt, template)
        assert user == {"role": "user", "content": prompt}
        assert system != compose(other, template)[0]
        assert any("\u4e00" <= letter <= "\u9fff" for letter in system["content"]) == (prompt == CHINESE)
    chosen = {language: compose("a fox", template, language)[0]["content"] for language in LANGUAGES}
    assert chosen["zh"] != chosen["en"] and "in English" in chosen["en"]
    asked_for = compose("a fox", template)[0]["content"]
    assert "in the language of the request" in asked_for and "in English" not in asked_for


def test_other_languages_get_english_instructions_and_their_own_answer() -> None:
    prompt = "\u043b\u0438\u0441\u0430 \u0432 \u0441\u043d\u0435\u0433\u0443"
    assert compose(prompt, "standard")[0] == compose("a fox", "standard")[0]


def test_terms_and_prompts_are_taken_literally() -> None:
    """Also where they look like a place of the template's own."""
    messages = compose("a {language} of {terms}", "standard", fixed=("{language}", "Ada"))
    assert messages[1]["content"] == "a {language} of {terms}"
    assert "{language}; Ada" in messages[0]["content"] and "{terms}" not in messages[0]["content"]


def test_small_models_get_the_prompt_alone() -> None:
    assert choose_template(2048) == PLAIN
    assert choose_template(151_936) == choose_template(None) == "standard"
    assert compose("a fox", PLAIN) == [{"role": "user", "content": "a fox"}]


def test_chat_is_qwens() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    open_chat = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert as_chat(messages, None) == as_chat(messages, True) == open_chat
    assert as_chat(messages, False) == f"{open_chat}<think>\n\n</think>\n\n"


def test_unknown_names_are_refused() -> None:
    for template, language in (("grand", "auto"), ("standard", "fr")):
        with pytest.raises(ValueError, match="known are"):
            compose("a fox", template, language)


@pytest.mark.parametrize(
    "prompt, answer, lost",
    [
        ("a smiling woman with red boots", "The woman smiles; her boots are of leather.", ["red"]),
        ("two babies running, dresses", "A baby runs in a dress, two of them.", []),
        ("a black cat in a car", "A blank category, a cart.", ["black", "cat", "car"]),
        ('the words "RED DOOR" on a door', "The words are on this door.", []),
        ("Fox and fox", "A dog.", ["Fox"]),
        ("\u7ea2\u8272\u7684\u72d0\u72f8", "\u7684\u72d0\u72f8", ["\u7ea2\u8272"]),
        ("a fox", CHINESE, []),
    ],
)
def test_words_of_the_prompt_that_are_in_no_form_there(prompt, answer, lost) -> None:
    assert lost_words(prompt, answer) == lost
