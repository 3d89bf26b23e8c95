"""Styles: words that give a prompt its look. About sixty are in styles.json; people add files of their own.

A file is a JSON object, {name: words} or {name: {"en": words, "zh": words}}. Words in one language stand for
both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .language import language_of

LANGUAGES = ("en", "zh")
POSITIONS = ("after", "before")
LARGEST_FILE = 1_000_000  # bytes
_COMMA = {"en": ", ", "zh": "\uff0c"}
_GAP = {"en": " ", "zh": ""}  # behind a sentence that has its own end
_ENDS = (".", "!", "?", ",", ";", ":", "\u3002", "\uff01", "\uff1f", "\uff0c", "\uff1b", "\uff1a")

Styles = dict[str, dict[str, str]]  # {name: {language: words}}


class StyleError(ValueError):
    """A style that there is none of, or a file of styles that cannot be read."""


def read_styles(path: Path) -> Styles:
    """The styles of a file. Raises StyleError naming the file and what is wrong in it."""
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise StyleError(f"{path} has {size} bytes; a file of styles may have {LARGEST_FILE}.")
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except StyleError:
        raise
    except (OSError, ValueError, RecursionError) as error:  # also a number too long for Python
        raise StyleError(f"{path} is no JSON text: {error}") from error
    if not isinstance(found, dict):
        raise StyleError(f'{path} is a JSON {type(found).__name__}; expected an object, {{"name": "words"}}.')
    return {name: _words(path, name, value) for name, value in found.items()}


def _words(path: Path, name: str, value: Any) -> dict[str, str]:
    words = {language: value for language in LANGUAGES} if isinstance(value, str) else value
    if not name.strip() or not isinstance(words, dict) or not words or set(words) - set(LANGUAGES):
        raise StyleError(
            f"{path}: the style {name!r} is {json.dumps(value, ensure_ascii=False):.80}; expected a name "
            'with words, "words" or {"en": "words", "zh": "words"}.'
        )
    for language, text in words.items():
        if not isinstance(text, str) or not text.strip():
            raise StyleError(f"{path}: the style {name!r} has no words in {language!r}.")
    (first, *_) = words.values()
    return {language: words.get(language, first).strip() for language in LANGUAGES}


def built_in() -> Styles:
    return read_styles(Path(__file__).with_name("styles.json"))


def in_style(text: str, words: dict[str, str], position: str) -> str:
    """A prompt, as it stands, with a style's words after or before it, in the prompt's language."""
    language = "zh" if language_of(text) == "zh" else "en"
    added = words[language]
    if not text.strip():
        return added
    if position == "before":
        return added + _COMMA[language] + text.lstrip()
    text = text.rstrip()
    if not text.endswith(_ENDS):
        return text + _COMMA[language] + added
    return text + _GAP[language] + added
