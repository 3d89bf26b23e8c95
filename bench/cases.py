"""What is compared, and how it is called in each language."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXTS = json.loads(Path(__file__).with_name("cases.json").read_text(encoding="utf-8"))
SEPARATORS = {"en": ", ", "zh": "\N{FULLWIDTH COMMA}"}


@dataclass(frozen=True)
class Case:
    """name: a key of cases.json. layers: how many were run, of how many."""

    name: str
    dtype: str
    pixels: int | None = None
    tokens: int | None = None
    dim: int | None = None
    layers: tuple[int, int] | None = None

    def called(self, language: str = "en") -> str:
        parts = [TEXTS["cases"][self.name][language], self.dtype]
        for detail, texts in TEXTS["details"].items():
            if (value := getattr(self, detail)) is not None:
                parts.append(texts[language].format(value))
        return SEPARATORS[language].join(parts)


def peer(name: str, language: str) -> str:
    return TEXTS["peers"][name][language]


def from_row(row: dict[str, Any]) -> Case:
    return Case(**row["case"])
