"""The word lists of faithful mode: what a writer may add (light, composition, camera, background, texture)
and the words that carry numbers, units, colours, sides and negations. The lists are JSON beside this file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent
VOWEL = re.compile("[aeiouy]")
COMPARABLE = {"light", "texture", "composition", "mood"}


@dataclass(frozen=True)
class Words:
    """One language. classes: word (English: stem) -> class; forms: word as listed -> class; phrases: fixed
    expressions without content, by their first word, longest first; particles: what one character of grammar
    is called -> the character; kinds: general noun -> what it can speak of; lists: sets of words (English:
    stems, where the file says so) and of characters.
    """

    classes: dict[str, str]
    forms: dict[str, str]
    phrases: dict[str, tuple[str, ...]]
    numbers: dict[str, str]
    signs: dict[str, str]
    units: dict[str, str]
    colours: dict[str, str]
    sides: dict[str, str]
    irregular: dict[str, str]
    opposites: dict[str, str]
    kinds: dict[str, frozenset[str]]
    particles: dict[str, str]
    lists: dict[str, frozenset[str]]


def _words(lines: Iterable[str]) -> list[str]:
    """The words of a list that is wrapped to lines."""
    return " ".join(lines).split()


def _aliases(table: dict[str, str]) -> dict[str, str]:
    """{"mm": "millimetre millimeter"} -> {"mm": "mm", "millimetre": "mm", ...}; "_" stands for a space."""
    return {a.replace("_", " "): key for key, row in table.items() for a in [key, *row.split()]}


def _read(language: str) -> Words:
    data = json.loads((FOLDER / f"faithful_{language}.json").read_text(encoding="utf-8"))
    irregular = _aliases(data.get("irregular", {}))

    def key(word: str) -> str:
        return stem(word, irregular) if language == "en" else word

    classes: dict[str, str] = {}
    forms: dict[str, str] = {}
    for name, rows in data["classes"].items():
        for word in _words(rows):
            classes.setdefault(key(word), name)
            forms.setdefault(word, name)
    phrases: dict[str, tuple[str, ...]] = {}
    for phrase in sorted(data["phrases"], key=len, reverse=True):
        first = re.split(r"[\s'-]", phrase)[0]
        phrases[first] = (*phrases.get(first, ()), phrase)
    lists = {name: frozenset(_words(rows)) for name, rows in data["lists"].items()}
    lists |= {name: frozenset(key(w) for w in _words(rows)) for name, rows in data.get("stems", {}).items()}
    lists |= {name: frozenset("".join(rows)) for name, rows in data.get("characters", {}).items()}
    refused = " ".join(row for rows in data["refused"].values() for row in rows)
    lists["refused"] = frozenset(map(key, refused.split()) if language == "en" else refused.replace(" ", ""))
    opposites = data.get("opposites", {})
    return Words(
        classes,
        forms,
        phrases,
        data["numbers"],
        {sign.strip(): value for sign, value in data["signs"].items()},
        _aliases(data["units"]),
        _aliases(data["colours"]),
        _aliases(data["sides"]),
        irregular,
        opposites | {b: a for a, b in opposites.items()},
        {key(kind): frozenset(map(key, row.split())) for kind, row in data.get("kinds", {}).items()},
        data.get("particles", {}),
        lists,
    )


@lru_cache
def english() -> Words:
    return _read("en")


@lru_cache
def chinese() -> Words:
    return _read("zh")


@lru_cache
def either(name: str) -> frozenset[str]:
    """A list of both languages."""
    return english().lists.get(name, frozenset()) | chinese().lists.get(name, frozenset())


@lru_cache(maxsize=8192)
def base(word: str) -> str:
    """The stem of an English word."""
    return stem(word, english().irregular)


def stem(word: str, irregular: dict[str, str]) -> str:
    """Lower case without plural, -ing, -ed and a last e: enough to see that two forms are one word."""
    word = word.lower()
    if word in irregular:
        return irregular[word]
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif re.search(r"(s|x|z|ch|sh)es$", word):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word[: -len(ending)]
        if word.endswith(ending) and len(rest) >= 3 and VOWEL.search(rest) and not word.endswith("eed"):
            if rest[-1] == rest[-2] and rest[-1] not in "lsz":
                rest = rest[:-1]
            word = rest
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def _bases(word: str) -> list[str]:
    """The base forms that a plural, -ing or -ed form can come from."""
    found = [word[:-2]] if word.endswith("es") else []
    for ending in ("ing", "ed"):
        rest = word[: -len(ending)]
        if word.endswith(ending) and len(rest) > 2:
            found += [rest, rest + "e"] + ([rest[:-1]] if rest[-1] == rest[-2] else [])
    return found


@lru_cache(maxsize=8192)
def english_class(word: str) -> str | None:
    """The class of an allowed word in any form, also -ly and -ness; -er and -est where that adds nothing."""
    words = english()
    lower = word.lower()
    if lower in words.lists["lookalikes"]:
        return None
    found = words.forms.get(lower) or words.forms.get(lower.removesuffix("s"))
    if found or len(lower) < 6:  # short stems are shared by too many words: hop and hope
        return found
    for base in _bases(lower):
        if base in words.forms:
            return words.forms[base]
    for ending in ("ly", "ness", "ily", "iness"):
        if lower.endswith(ending) and len(lower) - len(ending) >= 3:
            rest = lower[: -len(ending)]
            for base in (rest, rest + "y", rest + "le", rest + "e"):
                if found := words.forms.get(base):
                    return found
    for ending in ("er", "est", "ier", "iest"):
        if lower.endswith(ending) and len(lower) - len(ending) >= 3:
            rest = lower[: -len(ending)]
            undoubled = rest[:-1] if rest[-1] == rest[-2] else rest
            for base in (rest, rest + "y", rest + "e", undoubled):
                if (found := words.forms.get(base)) in COMPARABLE:
                    return found
    return None
