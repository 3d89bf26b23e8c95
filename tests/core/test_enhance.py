"""What a language model is asked, when it is asked again, and what is told."""

from __future__ import annotations

import json

import pytest

from zimage_core.prompt.enhancer import LARGEST_SEED, Draft, Request, WriterFailed, enhance, terms
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


def test_normal_asks_once_and_tells_what_was_lost() -> None:
    write = Answers("A dog in snow.")
    outcome = enhance(Request("a fox", "standard", fixed=("fox", "snow")), write)
    assert outcome.text == "A dog in snow." and "lost: fox" in outcome.notes
    assert len(write.asked) == 1
    assert enhance(Request("a fox", "standard"), Answers("")).text is None


def test_faithful_refuses_what_cannot_be_compared() -> None:
    request = Request("a fox", "faithful", language="zh", faithful=True)
    assert enhance(request, Answers(*3 * [CHINESE])).text is None


def test_faithful_asks_with_the_next_seeds() -> None:
    write = Answers("A dog.", "<think>hm", "A fox.")
    outcome = enhance(Request("a fox", "faithful", faithful=True, fixed=("fox",), seed=LARGEST_SEED), write)
    assert outcome.text == "A fox."
    assert [seed for _, seed in write.asked] == [LARGEST_SEED, 0, 1]
    lost = enhance(Request("a fox", "faithful", faithful=True, fixed=("fox",)), Answers(*3 * ["A dog."]))
    assert lost.text is None


def test_faithful_refuses_what_was_not_asked_for() -> None:
    """The comparison itself has tests of its own."""
    write = Answers("A red fox and a dog.", "A red fox in soft light.")
    outcome = enhance(Request("a red fox", "faithful", faithful=True), write)
    assert outcome.text == "A red fox in soft light."
    assert any("dog" in note for note in outcome.notes)
    named = Request("a fox", "faithful", faithful=True, fixed=("Reynard",))
    assert enhance(named, Answers("A fox, Reynard.")).text == "A fox, Reynard."


def test_a_writer_that_fails_is_not_asked_again() -> None:
    def write(messages: list[dict], seed: int) -> Draft:
        raise WriterFailed("no connection")

    outcome = enhance(Request("a fox", "faithful", faithful=True), write)
    assert outcome.text is None and outcome.notes == ["no connection"]


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
    assert chosen["zh"] != chosen["en"] != compose("a fox", template)[0]["content"]


def test_terms_and_prompts_are_taken_literally() -> None:
    """Also where they look like a place of the template's own."""
    messages = compose("a {language} of {terms}", "standard", fixed=("{language}", "Ada"))
    assert messages[1]["content"] == "a {language} of {terms}"
    assert "{language}; Ada" in messages[0]["content"] and "{terms}" not in messages[0]["content"]


def test_small_models_get_the_prompt_alone() -> None:
    assert choose_template(2048, faithful=True) == PLAIN
    assert choose_template(151_936, faithful=False) == choose_template(None, faithful=False) == "standard"
    assert choose_template(None, faithful=True) == "faithful"
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
