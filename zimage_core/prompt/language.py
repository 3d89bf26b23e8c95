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
# A Chinese character, or a word of at least three letters
_PIECE = re.compile(rf"{_CHINESE.pattern}|(?:(?!{_CHINESE.pattern})[^\W\d_]){{3,}}")
_ENDING, _DOUBLED = re.compile("(?<=...)(?:ing|ies|es|ed|ly|s|e|y)$"), re.compile(r"(.)\1$")


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


def lost_words(prompt: str, text: str) -> list[str]:
    """The words of a prompt that a text in the same language lacks, in the prompt's order, each once.

    Words count in any of their forms (smile, smiling), Chinese character by character; lost characters side
    by side are one. Quoted texts and small words are left out, and nothing is said of another language.
    """
    if language_of(prompt) != language_of(text):
        return []
    there, lost, end = set(map(_stem, _PIECE.findall(text))), [], -1
    for match in _PIECE.finditer(QUOTED.sub(lambda quoted: " " * len(quoted[0]), prompt)):
        word = match[0].lower()
        if word in _SMALL_WORDS["en"] or _stem(word) in there:
            continue
        if _CHINESE.match(word) and match.start() == end:
            lost[-1] += word
        else:
            lost.append(match[0])
        end = match.end()
    first: dict[str, str] = {}
    for word in lost:
        first.setdefault(word.lower(), word)
    return list(first.values())


def _stem(word: str) -> str:
    """What the forms of an English word share, near enough: smile, smiles and smiling, run and running."""
    return _DOUBLED.sub(r"\1", _ENDING.sub("", word.lower()))


def content_words(text: str) -> set[str]:
    """Chinese characters and other words in lower case, without small English words."""
    words = (word.lower() for word in _WORD.findall(_CHINESE.sub(" ", text)))
    return {*_CHINESE.findall(text), *words} - _SMALL_WORDS["en"]
