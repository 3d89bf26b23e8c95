"""The loaded text encoder as the writer of what an edited picture shall show."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from typing import Any

import torch

from ....zimage_core.prompt.enhancer import Draft, Write
from ....zimage_core.prompt.messages import Message
from ....zimage_core.prompt.writing import Sampling
from ..page.progress import LiveText, show_text
from .language_model import LanguageModel

LIKELIEST = Sampling(temperature=0)
LEAST_TOKENS = 256  # that a target may have; a long source prompt may have more
KEPT = 16  # answers of each text encoder: another seed or mask must not load it again

_answers: weakref.WeakKeyDictionary[torch.nn.Module, OrderedDict] = weakref.WeakKeyDictionary()


def target_writer(clip: Any, node_id: str | None) -> Write | None:
    """The language model in a CLIP; None where there is none, or a small one that follows no requests."""
    try:
        model = LanguageModel(clip) if clip is not None else None
    except ValueError:
        return None
    if model is None or not model.instructed:
        return None

    def write(messages: list[Message], seed: int) -> Draft:
        del seed  # the likeliest answer has no chance in it
        kept = _answers.setdefault(clip.cond_stage_model, OrderedDict())
        key = clip.patcher.patches_uuid, str(messages)
        if key not in kept:
            show_text(node_id, "The text encoder writes the target prompt.")
            most = LEAST_TOKENS + len(messages[-1]["content"])
            kept[key] = Draft(*model.write(messages, LIKELIEST, most, on_text=LiveText(None, most)))
            while len(kept) > KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    return write
