"""The words that a small model was trained on, and what of a prompt is none of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ENGLISH = re.compile(r"(?=[0-9]*[a-z])[a-z0-9]+(?:'[a-z]+)?")
HAN = re.compile("[\u4e00-\u9fff]+")
NAMED = re.compile(r"(?<!\S)embedding:\S+")  # a file's name


@dataclass(frozen=True)
class Vocabulary:
    """things: of each, its names by language, the usual one first. words: what captions say beside them."""

    things: list[dict[str, list[str]]]
    words: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        table = json.loads(path.read_text(encoding="utf-8"))
        return cls(table["things"], table["words"])

    def unknown(self, prompt: str) -> list[str]:
        """English words and runs of Chinese characters that no caption had, in order, without repeats."""
        prompt = NAMED.sub(" ", prompt).lower()
        names = {language: [n for t in self.things for n in t[language]] for language in self.words}
        known = {word for text in names["en"] + self.words["en"] for word in ENGLISH.findall(text.lower())}
        found = {
            match.start(): match[0] for match in ENGLISH.finditer(prompt) if not _forms(match[0]) & known
        }
        for word in sorted({*names["zh"], *self.words["zh"]}, key=len, reverse=True):
            prompt = prompt.replace(word.lower(), " " * len(word))
        found |= {match.start(): match[0] for match in HAN.finditer(prompt)}
        return list(dict.fromkeys(found[place] for place in sorted(found)))


def _forms(word: str) -> set[str]:
    """The word, and what it may be a plural of."""
    return {word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("'s")}
