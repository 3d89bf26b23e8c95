"""What a language model is asked, so that a short prompt becomes a description: see templates.json."""

from __future__ import annotations

import json
from pathlib import Path

from .language import OTHER, language_of

_SPEC = json.loads(Path(__file__).with_name("templates.json").read_text(encoding="utf-8"))
TEMPLATES: tuple[str, ...] = tuple(_SPEC["templates"])
LANGUAGES: tuple[str, ...] = tuple(_SPEC["languages"])
AUTO = "auto"
PLAIN = "plain"  # the prompt alone, for a model that was trained to answer it so
SMALLEST_INSTRUCTED = 10_000  # words in the vocabulary of a model that can follow instructions
NO_THOUGHT = "<think>\n\n</think>\n\n"  # Qwen3's own sign that an answer begins without thinking

Message = dict[str, str]  # {"role", "content"}


def choose_template(vocab_size: int | None) -> str:
    """The template for a model, by the size of its vocabulary; None where it is not known."""
    return PLAIN if vocab_size is not None and vocab_size < SMALLEST_INSTRUCTED else "standard"


def compose(prompt: str, template: str, language: str = AUTO, fixed: tuple[str, ...] = ()) -> list[Message]:
    """The messages for a chat model. fixed: terms that must come back as they are. Raises ValueError."""
    if template not in TEMPLATES or language not in (AUTO, *LANGUAGES):
        raise ValueError(
            f"template {template!r}, language {language!r}: known are {', '.join(TEMPLATES)} and "
            f"{', '.join((AUTO, *LANGUAGES))}"
        )
    asked = [{"role": "user", "content": prompt}]
    if template == PLAIN:
        return asked
    written_in = language_of(prompt) if language == AUTO else language
    if written_in == OTHER:
        written_in = "en"
    words, lines = _SPEC["languages"][written_in], _SPEC["templates"][template][written_in]
    *rules, ending = lines
    if fixed:
        rules.append(words["fixed"].replace("{terms}", words["joint"].join(fixed)))
    ending = ending.replace("{language}", words["same" if language == AUTO else "chosen"])
    return [{"role": "system", "content": "\n".join((*rules, ending))}, *asked]


def as_chat(messages: list[Message], thinking: bool | None) -> str:
    """Messages as Qwen's chat template writes them, up to where the answer begins.

    thinking: None for a model that knows no thinking.
    """
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return f"{turns}<|im_start|>assistant\n{NO_THOUGHT if thinking is False else ''}"
