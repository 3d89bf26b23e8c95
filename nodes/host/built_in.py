"""The built-in model: where its files lie, and its settings."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from ...zimage_core.prompt.vocabulary import Vocabulary

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"


def nano_settings() -> dict:
    """models/nano/config.json: sizes of the three parts and the colours of its live preview."""
    return json.loads((NANO / "config.json").read_text(encoding="utf-8"))


@functools.cache
def vocabulary() -> Vocabulary:
    """The things that it draws and the words of its captions."""
    return Vocabulary.read(NANO / "vocabulary.json")
