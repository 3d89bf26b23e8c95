"""The words that the model is trained on, in the form that `zimage_core.prompt.vocabulary` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .captions import LANGUAGES, Concept, phrasings
from .edits import TABLES
from .pictures import HERE, colours

KINDS = ("trained", "held_out", "short", "bare", "full", "keyword")  # of phrasings
PLACE = re.compile(r"\{\w+\}")
WORDS = re.compile(r"[A-Za-z0-9]+|[\u4e00-\u9fff]+")


def write_vocabulary(path: Path, concepts: list[Concept]) -> None:
    table = {
        "about": "The things that nano draws, by their names, and the other words of its captions and edits.",
        "things": [{lang: list(dict.fromkeys(c.names[lang])) for lang in LANGUAGES} for c in concepts],
        "words": {
            lang: sorted({w.lower() for text in _texts(lang) for w in WORDS.findall(text)})
            for lang in LANGUAGES
        },
    }
    path.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _texts(language: str) -> Iterator[str]:
    """What surrounds names: pieces of phrasings and instructions, colours, words that show nothing."""
    for kind in KINDS:
        for template in phrasings(language, kind):
            yield from PLACE.split(template)
    for entry in TABLES[language].values():
        for template in [entry] if isinstance(entry, str) else entry:
            yield from PLACE.split(template)
    yield from (getattr(colour, language) for colour in colours())
    yield from (paint[language] for paint in TABLES["paints"].values())
    yield from (family[language] for family in TABLES["families"])
    yield from json.loads((HERE / "captions.json").read_text("utf-8"))[language]["function_words"]
