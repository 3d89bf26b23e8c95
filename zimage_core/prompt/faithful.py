"""A faithful description: the prompt letter by letter, and additions from closed lists after it.

additions.json holds the phrases of each slot, slots.json the words by which a prompt speaks of a slot
already, faithful.json what a language model is asked. It only chooses: no word of its own gets into the text.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answer import without_thinking
from .language import OTHER, language_of
from .messages import Message


def _read(name: str) -> dict:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


ADDITIONS: dict[str, dict[str, list[str]]] = _read("additions.json")
_SLOTS, _ASKED = _read("slots.json"), _read("faithful.json")

FAITHFUL = "faithful"
EXPOSURE = "exposure"  # only for prompts about imaging
FOR_IMAGING = {"framing", EXPOSURE}
FOR_OTHER_LANGUAGES = {"focus", "finish"}
LETTERS = "ABCDEFGHIJKLMNOP"  # one for each phrase of a slot, and one for nothing

_ENDS = tuple(".,;:!?\u2026\u3002\uff0c\uff1b\uff1a\uff01\uff1f\u3001")  # nothing need be put after these


def _spoken(words: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
    """Finds whole English words, also without their hyphens, and Chinese words wherever they stand."""
    english = "|".join(re.escape(word).replace(r"\-", "[- ]?").replace(r"\ ", r"\s+") for word in words["en"])
    chinese = "|".join(map(re.escape, words["zh"]))
    return re.compile(f"(?<![a-z])(?:{english})(?![a-z])|{chinese}", re.IGNORECASE)


_IMAGING = _spoken(_SLOTS["imaging"])
_SPOKEN_OF = {slot: _spoken(words) for slot, words in _SLOTS["spoken_of"].items()}


@dataclass(frozen=True)
class Offer:
    """What may be added to a prompt. slots: the phrases of each open slot, in the order that is shown."""

    prompt: str  # its ends trimmed
    language: str  # of the phrases
    slots: Mapping[str, tuple[str, ...]]

    def ask_for_letters(self) -> list[Message]:
        """What a loaded language model is asked; the letters are those of LETTERS."""
        lists = [
            "\n".join((f"{number}. {slot.replace('_', ' ')}", *map("{}: {}".format, LETTERS, phrases)))
            for number, (slot, phrases) in enumerate(self.slots.items(), 1)
        ]
        return self._ask("letters", lists)

    def ask_for_json(self) -> list[Message]:
        """What a chat server is asked."""
        return self._ask("json", [json.dumps(self.slots, ensure_ascii=False, indent=1)])

    def _ask(self, form: str, lists: list[str]) -> list[Message]:
        asked = _ASKED[self.language]
        return [
            {"role": "system", "content": "\n".join((*asked["task"], asked[form]))},
            {"role": "user", "content": "\n\n".join((f"{asked['request']}\n{self.prompt}", *lists))},
        ]

    def chosen(self, places: Sequence[int]) -> dict[str, str]:
        """Slot -> the entry at its place, for as many slots as there are places."""
        return {slot: self.slots[slot][place] for slot, place in zip(self.slots, places, strict=False)}

    def read_json(self, answer: str) -> dict:
        """Slot -> what a chat server chose; empty where there is no JSON object in its answer."""
        try:
            text = without_thinking(answer)
            return json.loads(text[text.index("{") : text.rindex("}") + 1])
        except (ValueError, RecursionError):
            return {}

    def additions(self, chosen: Mapping[str, object]) -> list[str]:
        """The listed phrases among what was chosen, slot by slot; anything else counts as no choice."""
        return [chosen[slot] for slot in self.slots if chosen.get(slot) in ADDITIONS[slot][self.language]]

    def description(self, chosen: Mapping[str, object]) -> str:
        """The prompt and, after it, these additions."""
        asked, additions = _ASKED[self.language], self.additions(chosen)
        if not additions:
            return self.prompt
        join = asked["after"] if self.prompt.endswith(_ENDS) else asked["between"]
        return self.prompt + join + asked["between"].join(additions)


def offer(prompt: str, seed: int = 0) -> Offer:
    """The open slots of a prompt, each with "nothing" among its phrases, shuffled by the seed."""
    language = language_of(prompt)
    open_slots = ADDITIONS.keys() - {EXPOSURE}
    if _IMAGING.search(prompt):
        open_slots = FOR_IMAGING
    if language == OTHER:
        language, open_slots = "en", open_slots & FOR_OTHER_LANGUAGES
    order, slots = random.Random(seed), {}
    for slot, phrases in ADDITIONS.items():
        if slot in open_slots and not _SPOKEN_OF[slot].search(prompt):
            shown = [*phrases[language], _ASKED[language]["nothing"]]
            order.shuffle(shown)
            slots[slot] = tuple(shown)
    return Offer(prompt.strip(), language, slots)


def letter_tokens(tokenizer: Any) -> list[int]:
    """The token of each of LETTERS: with the space before it, as in running text, where that is one token."""
    spaced = [tokenizer(f" {letter}")["input_ids"] for letter in LETTERS]
    if all(len(tokens) == 1 for tokens in spaced):
        return [token for (token,) in spaced]
    return [tokenizer(letter)["input_ids"][-1] for letter in LETTERS]
