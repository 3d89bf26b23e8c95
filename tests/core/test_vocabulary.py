"""The words that the built-in model has read, and what of a prompt it has not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.core.random_models import seeds
from zimage_core.prompt.vocabulary import Vocabulary
from zimage_core.train.nano.captions import fill, phrasings
from zimage_core.train.nano.pictures import colours, concept_codes

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
WORDS = Vocabulary.read(NANO / "vocabulary.json")
CASES = json.loads(Path(__file__).with_name("unknown_words.json").read_text(encoding="utf-8"))


def test_as_many_things_as_were_trained_each_listed_in_the_readme() -> None:
    assert len(WORDS.things) == len(concept_codes()) == 127
    listed = (NANO / "README.md").read_text(encoding="utf-8").split("## What it knows")[1].split("\n## ")[0]
    assert listed.strip().startswith("127 things")
    for thing in WORDS.things:
        entry = f"{' / '.join(thing['en'])} ({' / '.join(thing['zh'])})"
        assert any(entry + end in listed for end in ",."), entry


@pytest.mark.parametrize("seed", seeds(2))
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_caption_is_known(language: str, seed: int) -> None:
    """Of each thing, in a phrasing and on a background drawn at random."""
    draw = random.Random(seed)
    kinds = ("trained", "held_out", "short", "bare", "full")
    templates = [template for kind in kinds for template in phrasings(language, kind)]
    for thing in WORDS.things:
        caption = fill(draw.choice(templates), draw.choice(thing[language]), draw.choice(colours()), language)
        assert WORDS.unknown(caption) == [], caption


@pytest.mark.parametrize("prompt, unknown", CASES)
def test_what_no_caption_had_is_named(prompt: str, unknown: list[str]) -> None:
    assert WORDS.unknown(prompt) == unknown
