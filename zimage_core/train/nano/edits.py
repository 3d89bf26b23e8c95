"""Editing: pairs of pictures with an instruction between them, and which pairs are held out of training."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from .captions import LANGUAGES, PLURALS, Concept, held_out_colour, with_article
from .pictures import HERE, colours

TABLES = json.loads((HERE / "edits.json").read_text("utf-8"))
KINDS = ("background", "swap", "recolour", "add")


@dataclass(frozen=True)
class Picture:
    """What a picture shows: indices of a concept and a background, and of a small second concept or none."""

    concept: int
    colour: int
    second: int | None = None


@dataclass(frozen=True)
class Edit:
    kind: str
    language: str
    instruction: str
    before: Picture
    after: Picture
    held_out: bool  # training never draws it


@dataclass(frozen=True)
class Family:
    """One thing in several colours: paint -> concept index, in a fixed order."""

    names: dict[str, str]
    members: dict[str, int]


def families(concepts: list[Concept]) -> list[Family]:
    index = {concept.code: number for number, concept in enumerate(concepts)}
    return [
        Family(
            {lang: row[lang] for lang in LANGUAGES},
            {paint: index[code] for paint, code in row["members"].items() if code in index},
        )
        for row in TABLES["families"]
    ]


def held_out_couple(first: int, second: int) -> bool:
    """Whether no training picture or instruction brings these two concepts together; about a tenth."""
    return (7 * first + 3 * second) % 10 == 0


def held_out_paints(first: int, second: int) -> bool:
    """Whether a family's member number `first` is never turned into number `second`; about a fifth."""
    return (first + second) % 5 == 3


def instructions(kind: str, language: str) -> list[str]:
    return TABLES[language][kind]


def small(name: str, language: str) -> str:
    """'apple' -> 'a small apple', in Chinese with its measure word."""
    if language == "zh":
        return TABLES["zh"]["small"].format(name=name)
    return f"small {name}" if name in PLURALS else f"a small {name}"


class Edits:
    """Draws edits of concepts, and captions of pictures with a second thing.

    pairs: the only pictures with a second thing that may be drawn; any when None.
    """

    def __init__(self, concepts: list[Concept], pairs: list[Picture] | None = None):
        self.concepts = concepts
        self.pairs = pairs
        self.palette = colours()
        self.families = [family for family in families(concepts) if len(family.members) > 1]

    def draw(self, kind: str, generator: torch.Generator, held_out: bool = False) -> Edit:
        """A random edit of one kind, trained or `held_out`.

        Backgrounds that captions never show with a concept appear only as the result of a held-out change.
        """
        while True:
            edit = self._draw(kind, _Dice(generator))
            if edit is not None and edit.held_out == held_out:
                return edit

    def _draw(self, kind: str, dice: _Dice) -> Edit | None:
        language = LANGUAGES[dice.below(len(LANGUAGES))]
        template = dice.of(instructions(kind, language))
        concept, colour = dice.below(len(self.concepts)), dice.below(len(self.palette))
        other = dice.below(len(self.concepts))
        if kind == "recolour":
            family = dice.of(self.families)
            first, second = dice.below(len(family.members)), dice.below(len(family.members))
            concept, other = (list(family.members.values())[i] for i in (first, second))
        if kind == "add" and self.pairs is not None:
            pair = dice.of(self.pairs)
            concept, colour, other = pair.concept, pair.colour, pair.second
        before = Picture(concept, colour)
        if concept == other or colour == held_out_colour(concept):
            return None
        if kind == "background":
            target = dice.below(len(self.palette))
            if target == colour:
                return None
            words = {"colour": getattr(self.palette[target], language)}
            held, after = target == held_out_colour(concept), Picture(concept, target)
        elif kind == "add":
            words = {"second": small(self._name(other, language), language)}
            held, after = held_out_couple(concept, other), Picture(concept, colour, other)
        else:
            if colour == held_out_colour(other):
                return None
            after = Picture(other, colour)
            if kind == "swap":
                held, words = held_out_couple(concept, other), self._swap_words(concept, other, language)
            else:
                held, paint = held_out_paints(first, second), list(family.members)[second]
                words = {"kind": family.names[language], "colour": TABLES["paints"][paint][language]}
        return Edit(kind, language, template.format(**words), before, after, held)

    def _name(self, concept: int, language: str) -> str:
        return self.concepts[concept].names[language][0]

    def _swap_words(self, concept: int, other: int, language: str) -> dict[str, str]:
        source, target = self._name(concept, language), self._name(other, language)
        if language == "zh":
            return {"source": source, "target": target}
        return {"source": f"the {source}", "target": with_article(target)}

    def pair_caption(self, picture: Picture, language: str, template: str) -> str:
        """The caption of a picture with a second thing."""
        name = self._name(picture.concept, language)
        return template.format(
            thing=with_article(name) if language == "en" else name,
            name=name,
            second=small(self._name(picture.second, language), language),
            colour=getattr(self.palette[picture.colour], language),
        )

    def draw_pair(self, generator: torch.Generator) -> tuple[str, Picture]:
        """A caption of a random one of the pairs, and what it shows."""
        dice = _Dice(generator)
        picture, language = dice.of(self.pairs), LANGUAGES[dice.below(len(LANGUAGES))]
        return self.pair_caption(picture, language, dice.of(TABLES[language]["pair"])), picture


def trained_pairs(concepts: list[Concept], count: int, seed: int = 0) -> list[Picture]:
    """`count` pictures with a second thing that training may show."""
    edits, generator = Edits(concepts), torch.Generator().manual_seed(seed)
    return [edits.draw("add", generator).after for _ in range(count)]


class _Dice:
    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def below(self, count: int) -> int:
        return int(torch.randint(count, (1,), generator=self.generator))

    def of(self, rows: list) -> object:
        return rows[self.below(len(rows))]
