"""The word lists of faithful mode: what a writer may add (light, composition, camera, background, texture)
and the words that carry numbers, units, colours, sides and negations. The lists are JSON beside this file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent
VOWEL = re.compile("[aeiouy]")
COMPARABLE = {"light", "texture", "composition", "mood"}


@dataclass(frozen=True)
class Words:
    """One language. classes: word (English: stem) -> class; forms: word as listed -> class; phrases: fixed
    expressions without content, by their first word, longest first.
    """

    classes: dict[str, str]
    forms: dict[str, str]
    phrases: dict[str, tuple[str, ...]]
    numbers: dict[str, str]
    units: dict[str, str]
    colours: dict[str, str]
    sides: dict[str, str]
    negations: frozenset[str]
    scene: frozenset[str]
    imaging: frozenset[str]
    ambiguous: frozenset[str]
    negatable: frozenset[str]
    irregular: dict[str, str]
    signs: dict[str, str]
    text_cues: frozenset[str]
    refused: frozenset[str]
    unhindering: frozenset[str]
    refused_characters: frozenset[str] = frozenset()
    heads: str = ""
    soft: str = ""
    classifiers: str = ""
    connectors: str = ""
    body: str = ""
    verbs: str = ""
    compounds: frozenset[str] = frozenset()
    adding: str = ""
    opposites: dict[str, str] | None = None


def _read(language: str) -> dict:
    return json.loads((FOLDER / f"faithful_{language}.json").read_text(encoding="utf-8"))


def _words(lines: list[str]) -> list[str]:
    """The words of a list that is wrapped to lines."""
    return " ".join(lines).split()


def _aliases(table: dict[str, str]) -> dict[str, str]:
    """{"mm": "millimetre millimeter"} -> {"mm": "mm", "millimetre": "mm", ...}; "_" stands for a space."""
    return {a.replace("_", " "): key for key, row in table.items() for a in [key, *row.split()]}


@lru_cache(maxsize=8192)
def base(word: str) -> str:
    """The stem of an English word."""
    return stem(word, english().irregular)


@lru_cache
def english() -> Words:
    data = _read("en")
    irregular = _aliases(data["irregular"])
    classes: dict[str, str] = {}
    forms: dict[str, str] = {}
    for name, row in data["classes"].items():
        for word in _words(row):
            classes.setdefault(stem(word, irregular), name)
            forms.setdefault(word, name)
    phrases: dict[str, tuple[str, ...]] = {}
    for phrase in sorted(data["phrases"], key=len, reverse=True):
        first = re.split(r"[\s'-]", phrase)[0]
        phrases[first] = (*phrases.get(first, ()), phrase)
    stems = {
        k: frozenset(stem(w, irregular) for w in _words(data[k])) for k in ("scene", "ambiguous", "negatable")
    }
    return Words(
        classes,
        forms,
        phrases,
        data["numbers"],
        _aliases(data["units"]),
        _aliases(data["colours"]),
        _aliases(data["sides"]),
        frozenset(_words(data["negations"])),
        stems["scene"],
        frozenset(_words(data["imaging"])),
        stems["ambiguous"],
        stems["negatable"],
        irregular,
        {k.strip(): v for k, v in data["signs"].items()},
        frozenset(_words(data["text_cues"])),
        frozenset(stem(w, irregular) for row in data["refused"].values() for w in _words(row)),
        frozenset(stem(w, irregular) for w in _words(data["unhindering"])),
    )


@lru_cache
def chinese() -> Words:
    data = _read("zh")
    classes: dict[str, str] = {}
    for name, row in data["classes"].items():
        for word in _words(row):
            classes.setdefault(word, name)
    return Words(
        classes,
        classes,
        {phrase: (phrase,) for phrase in data["phrases"]},
        data["numbers"],
        _aliases(data["units"]),
        _aliases(data["colours"]),
        _aliases(data["sides"]),
        frozenset(_words(data["negations"])),
        frozenset(_words(data["scene"])),
        frozenset(_words(data["imaging"])),
        frozenset(_words(data["ambiguous"])),
        frozenset(_words(data["negatable"])),
        {},
        {k.strip(): v for k, v in data["signs"].items()},
        frozenset(_words(data["text_cues"])),
        frozenset(_words(data["refused_words"])),
        frozenset(_words(data["unhindering"])),
        frozenset("".join(data["refused"].values())),
        data["heads"],
        data["soft"],
        data["classifiers"],
        data["connectors"],
        data["body"],
        data["verbs"],
        frozenset(_words(data["compounds"])),
        data["adding"],
        data["opposites"] | {b: a for a, b in data["opposites"].items()},
    )


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
