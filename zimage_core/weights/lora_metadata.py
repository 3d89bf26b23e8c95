"""What the metadata of a LoRA file says: how strong its changes are, and the words that call it up."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from .errors import WeightsError

ADAPTER = "lora_adapter_metadata"  # of diffusers: the settings of peft as JSON
NETWORK_ALPHA = "ss_network_alpha"  # of kohya's trainers, for all layers
PHRASES = (  # what is written for people
    "modelspec.trigger_phrase",
    "trigger_phrase",
    "trigger_word",
    "trigger_words",
    "ss_trigger_words",
    "trained_words",
    "trainedWords",
    "activation text",
    "instance_prompt",
)
TAGS = "ss_tag_frequency"  # {folder: {tag: how often}}, as JSON
MOST_WORDS, LONGEST_WORD = 8, 80


def network_alpha(
    name: str, metadata: Mapping[str, str], path: str, rank: int, as_kohya: bool
) -> float | None:
    """The alpha of a layer whose file has no tensor for it; None: the change counts as it is.

    path: the layer as the file writes it; as_kohya: its part has the name of kohya's trainers. Files that
    were converted to peft's names keep their metadata, and have alpha in the matrices.

    Raises WeightsError for settings that cannot be read; name: the file's.
    """
    if ADAPTER in metadata:
        settings = _adapter(name, metadata[ADAPTER])
        part = "text_encoder." if path.startswith("text_encoder") else "transformer."
        own = {key.removeprefix(part): value for key, value in settings.items()}
        patterns = own.get("alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise _unreadable(name, ADAPTER, patterns)
        layers = {key.strip("^$").replace("\\.", "."): value for key, value in patterns.items()}
        fitting = [layer for layer in layers if path == layer or path.endswith(f".{layer}")]
        alpha = layers[max(fitting, key=len)] if fitting else own.get("lora_alpha")
        if alpha is not None:
            alpha = _number(name, ADAPTER, alpha)
            return alpha * math.sqrt(rank) if own.get("use_rslora") is True else alpha
    if as_kohya and metadata.get(NETWORK_ALPHA) not in (None, "", "None"):
        return _number(name, NETWORK_ALPHA, metadata[NETWORK_ALPHA])
    return None


def _adapter(name: str, text: str) -> dict[str, Any]:
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise _unreadable(name, ADAPTER, text)
    return settings


def _number(name: str, place: str, value: Any) -> float:
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _unreadable(name, place, value)
    return number


def _unreadable(name: str, place: str, found: Any) -> WeightsError:
    return WeightsError(
        f"{name} has metadata that cannot be read in {place}: {str(found)[:60]!r}, expected the alpha "
        "of its layers as numbers. Download the file again or choose another."
    )


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """What its maker wrote to be put into prompts; else the commonest tags of its pictures."""
    words = [word for key in PHRASES for word in _words(metadata.get(key))]
    if not words:
        words = [tag for tag, _ in _tags(metadata.get(TAGS)).most_common(MOST_WORDS)]
    seen = {word.casefold(): word for word in reversed(words)}
    return list(reversed(seen.values()))[:MOST_WORDS]


def _words(value: object) -> list[str]:
    """Of a text with commas, or of a JSON list."""
    listed = _parsed(value)
    texts = [item for item in listed if isinstance(item, str)] if isinstance(listed, list) else [value]
    return [word for text in texts if isinstance(text, str) for word in map(_clean, text.split(",")) if word]


def _tags(value: object) -> Counter[str]:
    found, folders = Counter(), _parsed(value)
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            if (word := _clean(tag)) and type(count) is int:
                found[word] += count
    return found


def _parsed(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) and value.lstrip()[:1] in "[{" else None
    except (ValueError, RecursionError):
        return None


def _clean(word: str) -> str:
    return re.sub(r"\s+", " ", word).strip()[:LONGEST_WORD]
