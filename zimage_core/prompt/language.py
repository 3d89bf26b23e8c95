"""The language of a prompt, as far as script and common small words can tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

from .kept import QUOTED

OTHER = "other"

_SPEC = json.loads(Path(__file__).with_name("language.json").read_text(encoding="utf-8"))
_SMALL_WORDS = {language: set(words) for language, words in _SPEC.items()}
_CHINESE = re.compile("[\u3400-\u9fff]")
_KANA = re.compile("[\u3041-\u30ff]")
_WORD = re.compile(r"[^\W\d_]+")


def language_of(prompt: str) -> str:
    """en, zh or other, by script and by common small words; quoted texts count only where nothing else is.

    Chinese: more Chinese characters than words in other letters, and no kana. Other: kana, no words, or more
    words with letters beyond a to z, or small words of other languages, than small English words.
    """
    text = QUOTED.sub(" ", prompt)
    if not _WORD.search(text):
        text = prompt
    chinese = len(_CHINESE.findall(text))
    words = [word.lower() for word in _WORD.findall(_CHINESE.sub(" ", text))]
    if _KANA.search(text) or not (chinese or words):
        return OTHER
    if chinese > len(words):
        return "zh"
    other = sum(word in _SMALL_WORDS[OTHER] or not word.isascii() for word in words)
    return OTHER if other > sum(word in _SMALL_WORDS["en"] for word in words) else "en"


def content_words(text: str) -> set[str]:
    """Chinese characters and other words in lower case, without small English words."""
    words = (word.lower() for word in _WORD.findall(_CHINESE.sub(" ", text)))
    return {*_CHINESE.findall(text), *words} - _SMALL_WORDS["en"]
