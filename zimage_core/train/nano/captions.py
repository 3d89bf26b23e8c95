"""Concepts in two languages, the phrasings of their captions, and what is held out of training."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from .pictures import HERE, NAMES, Colour, colours, concept_codes, package

LANGUAGES = ("en", "zh")
PLURALS = {
    "grapes",
    "cherries",
    "french fries",
    "glasses",
    "scissors",
    "popcorn",
    "broccoli",
    "fire",
    "corn",
    "beer",
}
BARE_SHARE = 0.08  # of captions name no background: any trained one is right
ALIAS_SHARE = 0.15  # of captions use another name, where there is one
FULL_SHARE = 0.3  # of captions are as the text encoder writes them: the enhancer's pictures depend on these


@dataclass(frozen=True)
class Concept:
    """One thing to draw: its code point, and its names and CLDR's keywords per language.

    The first name is CLDR's short one.
    """

    code: str
    names: dict[str, tuple[str, ...]]
    keywords: dict[str, tuple[str, ...]]


def load_concepts(data: Path) -> list[Concept]:
    """The concepts with their CLDR names, in their fixed order.

    Raises ValueError when CLDR does not know one.
    """
    folder = package(data, NAMES) / "annotations"
    tables = {
        lang: json.loads((folder / lang / "annotations.json").read_text("utf-8"))["annotations"][
            "annotations"
        ]
        for lang in LANGUAGES
    }
    aliases = json.loads((HERE / "captions.json").read_text("utf-8"))["aliases"]
    concepts = []
    for code in concept_codes():
        rows = {lang: tables[lang].get(chr(int(code, 16))) for lang in LANGUAGES}
        if not all(rows.values()):
            raise ValueError(f"CLDR has no English and Chinese name for U+{code.upper()}")
        extra = aliases.get(code, {})
        names = {lang: (rows[lang]["tts"][0], *extra.get(lang, ())) for lang in LANGUAGES}
        concepts.append(Concept(code, names, {lang: tuple(rows[lang]["default"]) for lang in LANGUAGES}))
    return concepts


def with_article(name: str) -> str:
    """'fox' -> 'a fox', 'owl' -> 'an owl', 'grapes' -> 'grapes'."""
    if name in PLURALS:
        return name
    vowel = name[0].lower() in "aeiou" and not name.lower().startswith(("uni", "ufo"))
    return f"{'an' if vowel else 'a'} {name}"


def held_out_colour(concept: int) -> int:
    """Index of the one background that concept number `concept` is never trained on.

    They are spread evenly over the colours.
    """
    return concept % len(colours())


def phrasings(language: str, kind: str) -> list[str]:
    """Templates of one kind: 'trained', 'held_out', 'short', 'bare', 'full' or 'keyword'."""
    templates = json.loads((HERE / "captions.json").read_text("utf-8"))[language][kind]
    return [templates] if isinstance(templates, str) else list(templates)


def fill(template: str, name: str, colour: Colour, language: str) -> str:
    """A caption from a template."""
    thing = with_article(name) if language == "en" else name
    return template.format(thing=thing, name=name, colour=getattr(colour, language))


@dataclass(frozen=True)
class Pair:
    """A caption and the colour indices of backgrounds that fit it: all trained ones when it names none."""

    caption: str
    concept: int
    fits: tuple[int, ...]


class CaptionSet:
    """Every caption that training may draw, grouped by concept, without held-out backgrounds."""

    def __init__(self, concepts: list[Concept]):
        palette = colours()
        # concept -> colour -> captions that name it, first names before aliases
        self.trained: list[list[list[Pair]]] = []
        self.aliased: list[list[list[Pair]]] = []
        self.full: list[list[list[Pair]]] = []
        self.bare: list[list[Pair]] = []
        for index, concept in enumerate(concepts):
            allowed = tuple(c for c in range(len(palette)) if c != held_out_colour(index))
            first, other, full = ([[] for _ in palette] for _ in range(3))
            bare = []
            for language in LANGUAGES:
                templates = [t for kind in ("trained", "short", "full") for t in phrasings(language, kind)]
                for rank, name in enumerate(concept.names[language]):
                    for colour in allowed:
                        rows = other if rank else first
                        rows[colour] += [
                            Pair(fill(t, name, palette[colour], language), index, (colour,))
                            for t in templates
                        ]
                for colour in allowed:
                    caption = fill(
                        phrasings(language, "full")[0], concept.names[language][0], palette[colour], language
                    )
                    full[colour].append(Pair(caption, index, (colour,)))
                for name in concept.names[language]:
                    bare += [
                        Pair(fill(t, name, palette[0], language), index, allowed)
                        for t in phrasings(language, "bare")
                    ]
            self.trained.append(first)
            self.aliased.append(other)
            self.full.append(full)
            self.bare.append(bare)

    def all(self) -> list[Pair]:
        """Every caption once."""
        grouped = [
            rows for table in (self.trained, self.aliased) for per_concept in table for rows in per_concept
        ]
        return [pair for rows in grouped + self.bare for pair in rows]

    def draw(self, generator: torch.Generator) -> tuple[Pair, int]:
        """A random caption with the colour index of its picture.

        Concepts and their trained backgrounds are equally likely.
        """

        def below(count: int) -> int:
            return int(torch.randint(count, (1,), generator=generator))

        concept = below(len(self.trained))
        allowed = self.bare[concept][0].fits
        colour = allowed[below(len(allowed))]
        share = float(torch.rand(1, generator=generator))
        rows = self.trained[concept][colour]
        if share < BARE_SHARE:
            rows = self.bare[concept]
        elif share < BARE_SHARE + ALIAS_SHARE and self.aliased[concept][colour]:
            rows = self.aliased[concept][colour]
        elif share > 1 - FULL_SHARE:
            rows = self.full[concept][colour]
        return rows[below(len(rows))], colour


def held_out_captions(concepts: list[Concept]) -> list[Pair]:
    """Captions in phrasings that training never sees, by first names.

    There is one of every concept, background and language.
    """
    palette = colours()
    return [
        Pair(fill(template, concept.names[language][0], palette[colour], language), index, (colour,))
        for language in LANGUAGES
        for template in phrasings(language, "held_out")
        for index, concept in enumerate(concepts)
        for colour in range(len(palette))
    ]


def writing_examples(concepts: list[Concept]) -> list[tuple[str, str]]:
    """(short prompt, full caption) pairs: from these the language model learns to write captions."""
    palette = colours()
    examples = []
    for index, concept in enumerate(concepts):
        for language in LANGUAGES:
            full = phrasings(language, "full")[0]
            for name in concept.names[language]:
                for colour in range(len(palette)):
                    if colour == held_out_colour(index):
                        continue
                    answer = fill(full, name, palette[colour], language)
                    examples += [
                        (fill(t, name, palette[colour], language), answer)
                        for t in phrasings(language, "short")
                    ]
    return examples


def other_keywords(concepts: list[Concept]) -> list[dict[str, tuple[str, ...]]]:
    """Per concept and language, CLDR's keywords that no caption contains and no other concept shares.

    A concept can be asked for by them, but only of one who knows what the words mean.
    """
    texts = "\n".join(pair.caption.lower() for pair in CaptionSet(concepts).all())
    spoken = set(re.findall(r"[a-z]+", texts))

    def unknown(word: str, language: str) -> bool:
        if language == "en":
            return not spoken & set(re.findall(r"[a-z]+", word.lower()))
        return word.lower() not in texts

    keywords = []
    counts = {lang: Counter(k for c in concepts for k in c.keywords.get(lang, ())) for lang in LANGUAGES}
    for concept in concepts:
        keywords.append(
            {
                lang: tuple(
                    word
                    for word in concept.keywords.get(lang, ())
                    if counts[lang][word] == 1 and unknown(word, lang)
                )
                for lang in LANGUAGES
            }
        )
    return keywords


def keyword_prompts(words: tuple[str, ...], language: str) -> list[str]:
    """One keyword, or two in either order."""
    comma = ", " if language == "en" else "\uff0c"
    return [*words, *(comma.join(couple) for couple in itertools.permutations(words, 2))]


def keyword_examples(concepts: list[Concept]) -> list[tuple[str, str]]:
    """(keywords and a background, full caption) pairs, without held-out backgrounds."""
    palette = colours()
    examples = []
    for index, keywords in enumerate(other_keywords(concepts)):
        for language in LANGUAGES:
            full, name = phrasings(language, "full")[0], concepts[index].names[language][0]
            for colour in range(len(palette)):
                if colour != held_out_colour(index):
                    examples += [
                        (
                            t.format(words=words, colour=getattr(palette[colour], language)),
                            fill(full, name, palette[colour], language),
                        )
                        for words in keyword_prompts(keywords[language], language)
                        for t in phrasings(language, "keyword")
                    ]
    return examples
