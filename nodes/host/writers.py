"""Who can write a description: the text encoder that is loaded, or an endpoint."""

from __future__ import annotations

from typing import Any

from ...zimage_core.prompt.enhance import Draft, Write
from ...zimage_core.prompt.generate import Sampling
from ...zimage_core.prompt.messages import Message
from .generate import LanguageModel
from .progress import LiveText

TEXT_ENCODER = "text encoder"


def sources() -> tuple[str, ...]:
    return (TEXT_ENCODER,)


def writer(clip: Any, values: dict, node_id: str | None) -> tuple[Write, int | None]:
    """What writes for the enhancer's widgets `values`, and the size of its vocabulary where that is known."""
    if clip is None:
        raise ValueError(
            "clip is empty: link the text encoder from the Z-Image loader, or choose an endpoint."
        )
    model = LanguageModel(clip)
    settings = {name: values[name] for name in Sampling.__dataclass_fields__}

    def write(messages: list[Message], seed: int) -> Draft:
        live = LiveText(node_id, values["max_tokens"])
        sampling = Sampling(**{**settings, "seed": seed})
        text, note = model.write(messages, sampling, values["max_tokens"], values["thinking"], live)
        return Draft(text, f"seed {seed}: {note}")

    return write, model.config.vocab_size
