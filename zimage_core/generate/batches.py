"""Which requests are drawn together. It follows from the requests alone, not from where they are drawn."""

from __future__ import annotations

from collections.abc import Iterable

from .requests import Request

Batch = tuple[Request, ...]
SIMILAR = 128  # bytes of a prompt, about 32 tokens: to multiples of that the model fills up a caption


def cut(requests: Iterable[Request], largest: int) -> list[Batch]:
    """Batches of at most so many requests with one size, steps, guidance, LoRAs, and prompts about as long.

    Those of the same LoRAs stand one after the other. A request with an input picture is a batch of its own.
    """
    groups: dict[tuple, list[Request]] = {}
    for request in requests:
        length = len(request.prompt.encode()) // SIMILAR
        key = (request.loras, request.size, request.steps, request.guidance, length)
        groups.setdefault((*key, request.line) if request.image else key, []).append(request)
    order = {loras: at for at, loras in enumerate(dict.fromkeys(key[0] for key in groups))}
    batches = []
    for key in sorted(groups, key=lambda key: order[key[0]]):
        group = groups[key]
        batches += [tuple(group[at : at + largest]) for at in range(0, len(group), largest)]
    return batches
