"""Which pictures and captions make each batch: buckets of one size, in an order that the seed says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image
from torch import Tensor

from ..model.sequence import Captions, joined
from .plan import seed_of

MULTIPLE = 16  # pixels: a patch of the transformer
MOST_ASPECT = 4.0


@lru_cache
def buckets(pixels: int) -> tuple[tuple[int, int], ...]:
    """Widths and heights in multiples of 16 of at most so many pixels, from wide to tall."""
    found = []
    for width in range(MULTIPLE, int(math.sqrt(pixels * MOST_ASPECT)) + 1, MULTIPLE):
        height = pixels // width // MULTIPLE * MULTIPLE
        if height and 1 / MOST_ASPECT <= width / height <= MOST_ASPECT:
            found.append((width, height))
    if not found:
        raise ValueError(f"{pixels} pixels make no picture of {MULTIPLE} pixels a side or more")
    return tuple(sorted(found, key=lambda size: size[1] / size[0]))


def bucket_of(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The width and height that a picture is trained in: of its shape as nearly as can be, and large."""
    aspect = math.log(width / height)

    def misfit(size: tuple[int, int]) -> tuple[float, int]:
        return round(abs(math.log(size[0] / size[1]) - aspect), 6), -size[0] * size[1]

    return min(buckets(pixels), key=misfit)


def resized(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture in RGB -> pixels [3,H,W] in [-1,1], scaled to cover the size and cut evenly at its edges."""
    scale = max(size[0] / picture.width, size[1] / picture.height)
    width, height = size[0] / scale, size[1] / scale  # of what is kept
    left, top = (picture.width - width) / 2, (picture.height - height) / 2
    box = (max(left, 0), max(top, 0), min(left + width, picture.width), min(top + height, picture.height))
    scaled = picture.resize(size, Image.LANCZOS, box=box)
    flat = torch.frombuffer(bytearray(scaled.tobytes()), dtype=torch.uint8)
    return flat.view(size[1], size[0], 3).permute(2, 0, 1).float() / 127.5 - 1


@dataclass(frozen=True, eq=False)
class Example:
    """One picture as it is trained on.

    latent: [C,h,w], scaled for the model. captions: features [L,width] of each of its captions.
    share: how often it comes, as a multiple of others.
    """

    latent: Tensor
    captions: tuple[Tensor, ...]
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Batch:
    """latents: [B,C,h,w]; captions: one for each."""

    latents: Tensor
    captions: Captions


class Batches:
    """Examples in an endless order that step and seed alone say.

    Each comes once in a round, or as often as its share says; a batch is of one size. caption_dropout: how
    often `empty`, the features [L,width] of no text, takes the caption's place.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        size: int,
        seed: int = 0,
        caption_dropout: float = 0.0,
        empty: Tensor | None = None,
    ) -> None:
        if not examples:
            raise ValueError("no pictures to train on")
        if caption_dropout and empty is None:
            raise ValueError("captions are left out, and there are no features of an empty one")
        most = max(example.share for example in examples)
        if most <= 0:
            raise ValueError("no picture counts: the weight of each is 0")
        self.scale = max(1.0, 1 / most)  # so that each round has a picture
        self.examples, self.size, self.seed = examples, size, seed
        self.caption_dropout, self.empty = caption_dropout, empty
        self.round, self.start, self.order = 0, 0, self._round(0)

    def _round(self, number: int) -> list[list[int]]:
        """The batches of a round, as numbers of examples."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, number))
        groups: dict[tuple, list[int]] = {}
        for at, example in enumerate(self.examples):
            part = torch.rand(1, generator=generator).item()  # of one picture: by chance
            times = int(example.share * self.scale + part)
            groups.setdefault(tuple(example.latent.shape), []).extend([at] * times)
        batches = []
        for group in groups.values():
            drawn = [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
            missing = -len(drawn) % self.size if drawn else 0
            drawn += [drawn[i % len(drawn)] for i in range(missing)]  # the last batch is filled up
            batches += [drawn[i : i + self.size] for i in range(0, len(drawn), self.size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def numbers(self, step: int) -> list[int]:
        """Which examples make the batch of a step."""
        if step < self.start:
            self.round, self.start, self.order = 0, 0, self._round(0)
        while step >= self.start + len(self.order):
            self.start += len(self.order)
            self.round += 1
            self.order = self._round(self.round)
        return self.order[step - self.start]

    def draw(self, step: int, generator: torch.Generator) -> Batch:
        """The batch of a step; generator: chooses captions."""
        chosen = [self.examples[at] for at in self.numbers(step)]
        features = [self._caption(example, generator) for example in chosen]
        return Batch(torch.stack([example.latent for example in chosen]), captions_of(features))

    def _caption(self, example: Example, generator: torch.Generator) -> Tensor:
        pick, dropped = torch.rand(2, generator=generator).tolist()
        if dropped < self.caption_dropout:
            return self.empty
        return example.captions[int(pick * len(example.captions))]


def captions_of(features: Sequence[Tensor]) -> Captions:
    """Features [L,width] of each caption -> a batch of them."""
    return Captions(joined([f[None] for f in features]), tuple(len(f) for f in features))


def together(a: Batch, b: Batch) -> list[Batch]:
    """Two batches as one where their pictures are of one size, else both."""
    if a.latents.shape[1:] != b.latents.shape[1:]:
        return [a, b]
    return [Batch(torch.cat((a.latents, b.latents)), Captions.joined([a.captions, b.captions]))]
