"""Who can write a description, or choose additions: the text encoder that is loaded, or an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management as memory

from ....zimage_core.prompt.answer import AnswerError
from ....zimage_core.prompt.endpoint import EndpointError, complete
from ....zimage_core.prompt.enhancer import Choose, Draft, Write, WriterFailed
from ....zimage_core.prompt.faithful import Offer
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
    model = _language_model(clip)
    return _by_text_encoder(model, values, node_id), model.config.vocab_size


def chooser(clip: Any, values: dict, node_id: str | None) -> Choose:
    """What chooses in faithful mode, for the same widgets."""
    if values["source"] != TEXT_ENCODER:
        write = _by_endpoint(values, None)  # its JSON is not for the page

        def choose_by_endpoint(offer: Offer) -> tuple[Mapping[str, object], str]:
            draft = write(offer.ask_for_json(), values["seed"])
            chosen = offer.read_json(draft.text)
            return chosen, draft.note if chosen else f"{draft.note}, but no JSON object that could be read"

        return choose_by_endpoint
    model = _language_model(clip)

    def choose(offer: Offer) -> tuple[Mapping[str, object], str]:
        counts, live = [len(phrases) for phrases in offer.slots.values()], LiveText(node_id, len(offer.slots))
        places, note = model.choose(
            offer.ask_for_letters(),
            counts,
            values["temperature"],
            values["seed"],
            lambda places: live(offer.description(offer.chosen(places))),
        )
        return offer.chosen(places), f"seed {values['seed']}: {note}"

    return choose


def _language_model(clip: Any) -> LanguageModel:
    if clip is None:
        raise ValueError(
            "clip is empty: link the text encoder from the Z-Image loader, or choose an endpoint."
        )
    return LanguageModel(clip)


def _by_text_encoder(model: LanguageModel, values: dict, node_id: str | None) -> Write:
    settings = {name: values[name] for name in Sampling.__dataclass_fields__}

    def write(messages: list[Message], seed: int) -> Draft:
        sampling = Sampling(**{**settings, "seed": seed})
        live = LiveText(node_id, values["max_tokens"])
        text, note, ended = model.write(messages, sampling, values["max_tokens"], values["thinking"], live)
        if values["thinking"] and not model.thinking:
            note += "; thinking has no effect: this text encoder cannot think"
        return Draft(text, f"seed {seed}: {note}", ended)

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
            raise (AnswerError if error.answered else WriterFailed)(str(error)) from error
        return Draft(text, f"seed {seed}: {len(text)} characters written")

    return write
