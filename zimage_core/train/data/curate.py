"""The model itself is asked for each concept: what it cannot draw counts more, or is fetched from a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from .concepts import Concepts
from .records import PictureRecord

WEAK = 0.5  # share of right pictures below which a concept is weak
RAISED = 4.0  # how much more a picture of a thing counts that the model never draws

Draw = Callable[[Sequence[str], int], Sequence[Image.Image]]  # prompts and a seed -> a picture of each
Score = Callable[[Image.Image, str], float]  # a picture and a concept -> 0..1, whether it shows it


def probe(prompts: Mapping[str, Sequence[str]], draw: Draw, score: Score, seed: int = 0) -> dict[str, float]:
    """How well the model draws each concept, 0..1: the mean over its prompts.

    prompts: of each concept, all of one number. Raises ValueError where one has none.
    """
    if empty := [concept for concept, asked in prompts.items() if not asked]:
        raise ValueError(f"no prompt asks for {', '.join(empty)}")
    pairs = [(concept, prompt) for concept, asked in prompts.items() for prompt in asked]
    images = draw([prompt for _, prompt in pairs], seed)
    totals = dict.fromkeys(prompts, 0.0)
    for (concept, _), image in zip(pairs, images, strict=True):
        totals[concept] += score(image, concept)
    return {concept: total / len(prompts[concept]) for concept, total in totals.items()}


def raised(
    weights: Sequence[float], names: Sequence[Iterable[str]], shares: Mapping[str, float]
) -> tuple[float, ...]:
    """The weights, more for pictures of what the model draws badly; their mean stays.

    names: the concepts of each picture. shares: what `probe` found; of several the weakest counts.
    """
    factors = []
    for own in names:
        weakest = min((shares[name] for name in own if name in shares), default=1.0)
        factors.append(1 + (RAISED - 1) * (1 - weakest))
    new = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
    scale = sum(weights) / (sum(new) or 1.0)
    return tuple(weight * scale for weight in new)


def weak(shares: Mapping[str, float]) -> list[str]:
    """Concepts that the model does not draw, the worst first."""
    return [name for share, name in sorted((share, name) for name, share in shares.items()) if share < WEAK]


def retrieve(
    wanted: Sequence[str],
    pool: Sequence[PictureRecord],
    found: Concepts,
    known: Iterable[Path],
    each: int,
) -> list[PictureRecord]:
    """Pictures of the pool that show what is wanted, at most `each` of a concept, none that is known already.

    found: the concepts of the pool. Those that show little else come first: their captions are about it.
    """
    taken = set(known)
    chosen = []
    for concept in wanted:
        showing = [
            (len(names), number)
            for number, (names, record) in enumerate(zip(found.names, pool, strict=True))
            if concept in names and not record.drop and record.path not in taken
        ]
        for _, number in sorted(showing)[:each]:
            taken.add(pool[number].path)
            chosen.append(pool[number])
    return chosen
