"""The built-in model: where its files lie, its settings, and the words that it knows."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import folder_paths

from ...zimage_core.prompt.vocabulary import Vocabulary

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
EXAMPLE_LORAS = NANO / "loras"  # holds nothing but the one LoRA of nano


def nano_settings() -> dict:
    """models/nano/config.json: sizes of the three parts and the colours of its live preview."""
    return json.loads((NANO / "config.json").read_text(encoding="utf-8"))


@functools.cache
def vocabulary() -> Vocabulary:
    """The things that it draws and the words of its captions."""
    return Vocabulary.read(NANO / "vocabulary.json")


def list_example_lora() -> None:
    """Let LoRA loaders list nano's example beside the files of models/loras."""
    folder_paths.add_model_folder_path("loras", str(EXAMPLE_LORAS))
