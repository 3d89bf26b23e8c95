"""Who can write a description: the text encoder that is loaded, or an endpoint."""

from __future__ import annotations

from typing import Any

import comfy.model_management as memory

from ....zimage_core.prompt.endpoint import EndpointError, complete
from ....zimage_core.prompt.enhancer import Draft, Write, WriterFailed
from ....zimage_core.prompt.messages import Message
from ....zimage_core.prompt.writing import Sampling
from ..page.progress import LiveText
from .endpoints import endpoint, endpoint_names
from .language_model import LanguageModel

TEXT_ENCODER = "text encoder"


def sources() -> list[str]:
    return [TEXT_ENCODER, *endpoint_names()]


def writer(clip: Any, values: dict, node_id: str | None) -> tuple[Write, int | None]:
    """What writes for the enhancer's widgets `values`, and the size of its vocabulary where that is known."""
    if values["source"] != TEXT_ENCODER:
        return _by_endpoint(values, node_id), None
    if clip is None:
        raise ValueError(
            "clip is empty: link the text encoder from the Z-Image loader, or choose an endpoint."
        )
    model = LanguageModel(clip)
    return _by_text_encoder(model, values, node_id), model.config.vocab_size


def _by_text_encoder(model: LanguageModel, values: dict, node_id: str | None) -> Write:
    settings = {name: values[name] for name in Sampling.__dataclass_fields__}

    def write(messages: list[Message], seed: int) -> Draft:
        sampling = Sampling(**{**settings, "seed": seed})
        live = LiveText(node_id, values["max_tokens"])
        text, note = model.write(messages, sampling, values["max_tokens"], values["thinking"], live)
        return Draft(text, f"seed {seed}: {note}")

    return write


def _by_endpoint(values: dict, node_id: str | None) -> Write:
    def write(messages: list[Message], seed: int) -> Draft:
        try:
            text = complete(
                endpoint(values["source"]),
                messages,
                max_tokens=values["max_tokens"],
                temperature=values["temperature"],
                top_p=values["top_p"],
                seed=seed,
                on_text=LiveText(node_id, values["max_tokens"]),
                check_cancelled=memory.throw_exception_if_processing_interrupted,
            )
        except EndpointError as error:
            raise WriterFailed(str(error)) from error
        return Draft(text, f"seed {seed}: {len(text)} characters written")

    return write
