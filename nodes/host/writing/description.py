"""A prompt -> its description, by the settings of the enhancer."""

from __future__ import annotations

from collections.abc import Callable

from ....zimage_core.prompt.enhancer import Outcome, Request, describe_faithfully, enhance, terms
from ....zimage_core.prompt.faithful import FAITHFUL, offer
from ....zimage_core.prompt.messages import AUTO, choose_template
from .sources import chooser, writer


def describer(prompt: str, clip: object, values: dict, node_id: str) -> tuple[str, Callable[[int], Outcome]]:
    """How the prompt is described, in words, and what does it for a seed."""
    fixed = terms(values["fixed_terms"])
    if FAITHFUL in (values["mode"], values["template"]):

        def describe(seed: int) -> Outcome:
            choose = chooser(clip, values | {"seed": seed}, node_id)
            return describe_faithfully(offer(prompt, seed), choose, fixed)

        return "faithful", describe
    write, vocab_size = writer(clip, values, node_id)
    template = choose_template(vocab_size) if values["template"] == AUTO else values["template"]
    return f"template {template}", lambda seed: enhance(
        Request(prompt, template, values["language"], fixed, seed), write
    )
