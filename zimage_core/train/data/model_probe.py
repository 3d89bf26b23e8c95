"""Ask a model for the concepts of a data set: it draws captions, and a vision encoder says what is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ..presets import sampling
from ..run import Parts
from ..samples import draw
from .concepts import Concepts, Links
from .curate import Draw, Score
from .inspection import Embed
from .picture_files import PictureError, open_picture
from .records import PictureRecord

FEWEST = 3  # pictures of a concept that is asked for
EXAMPLES = 8  # pictures whose mean feature stands for a concept
PROMPTS = 2  # captions of it that are drawn
MOST = 40  # concepts that are asked for, evenly from rare to frequent
AT_ONCE = 4


@dataclass(frozen=True)
class Questions:
    """prompts: captions of pictures of each concept. centres: the mean feature of its pictures."""

    prompts: dict[str, list[str]]
    centres: dict[str, np.ndarray]


def questions(records: Sequence[PictureRecord], found: Concepts, links: Links, embed: Embed) -> Questions:
    """For at most MOST things of the table that have no children and that enough pictures show.

    Others, such as what is around them, stand together in one picture, where none is the nearest.
    found: the concepts of the records.
    """
    parents = {parent for named in links.values() for parent in named}
    showing: dict[str, list[int]] = {}
    for number, names in enumerate(found.names):
        for name in names & (links.keys() - parents):
            showing.setdefault(name, []).append(number)
    names = sorted((n for n in showing if len(showing[n]) >= FEWEST), key=lambda n: (len(showing[n]), n))
    names = [names[k * len(names) // MOST] for k in range(MOST)] if len(names) > MOST else names
    prompts, centres = {}, {}
    for name in names:
        vectors = []
        for number in showing[name][:EXAMPLES]:
            try:
                vectors.append(embed(open_picture(records[number].path)))
            except PictureError:
                continue
        texts = list(dict.fromkeys(records[n].captions[0] for n in showing[name] if records[n].captions))
        if vectors and texts:
            prompts[name] = (texts * PROMPTS)[:PROMPTS]
            centres[name] = np.mean(vectors, axis=0)
    return Questions(prompts, centres)


def drawn_by(made: Parts, variant: str, side: int) -> Draw:
    """Pictures of that side by the model, as its variant is sampled."""
    how = sampling(variant)
    empty = made.features("") if how.guidance > 0 else None

    def pictures(prompts: Sequence[str], seed: int) -> list[Image.Image]:
        images: list[Image.Image] = []
        size = (side // made.factor, side // made.factor)
        for start in range(0, len(prompts), AT_ONCE):
            features = [made.features(prompt) for prompt in prompts[start : start + AT_ONCE]]
            seeds = [seed + start + number for number in range(len(features))]
            pixels = made.decode(draw(made.model, features, size, how, seeds, empty))
            levels = (pixels.float().cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
            images += [Image.fromarray(np.ascontiguousarray(picture)) for picture in levels]
        return images

    return pictures


def nearest(centres: dict[str, np.ndarray], embed: Embed) -> Score:
    """1 where a picture is nearer to the concept than to any other, by what differs between them."""
    usual = np.mean(list(centres.values()), axis=0)
    own = {name: (centre - usual) / max(float(np.linalg.norm(centre - usual)), 1e-6)
           for name, centre in centres.items()}  # fmt: skip

    def score(image: Image.Image, concept: str) -> float:
        vector = embed(image) - usual
        return float(max(own, key=lambda name: float(own[name] @ vector)) == concept)

    return score
