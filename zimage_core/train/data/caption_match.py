"""Does a caption fit its picture? The model that draws is asked: how well does it denoise it under that text?

Beside the captions of other pictures, at the same noise: "Your Diffusion Model is Secretly a Zero-Shot
Classifier" (arXiv 2303.16203).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...cluster import installed
from ...model.s3dit import Prompt, S3DiT
from ...model.sequence import Captions
from ..flow import noised
from .each_picture import Failed, Item, Map, one_by_one, read
from .picture_files import LIMITS, Limits, flattened
from .records import PictureRecord

SIGMAS = (1.0, 0.95, 0.85, 0.7)  # a caption counts most where next to nothing is seen
NOISES = 1  # of each
OTHERS = 4  # captions of other pictures
LEAST = 0.75  # of the usual gain by an own caption; below it, the caption is of something else
MULTIPLE = 16  # pixels that sides are whole numbers of


@dataclass(frozen=True)
class CaptionJudge:
    """encode: pixels [B,3,H,W] in [-1,1] -> scaled latents. features: a text -> [L,width].

    side: pixels of a square picture; others have as many.
    """

    model: S3DiT
    encode: Callable[[Tensor], Tensor]
    features: Callable[[str], Tensor]
    side: int = 512

    @torch.no_grad()
    def gain(self, image: Image.Image, caption: str, others: Sequence[str], seed: int = 0) -> float:
        """How much smaller the error is under the caption than under others, of these; at most 1."""
        latents = self.encode(_pixels(image, self.side))
        features = [self.features(text) for text in (caption, *others)]
        lengths = tuple(len(f) for f in features)
        like = self.model.x_pad_token
        padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True).to(like)
        condition = Prompt(Captions(padded, lengths))
        generator, total = torch.Generator().manual_seed(seed), torch.zeros(len(features))
        for sigma in SIGMAS * NOISES:
            noisy, wanted = noised(latents.float(), torch.tensor([sigma]), generator)
            batch = noisy.to(like).expand(len(features), -1, -1, -1)
            sigmas = torch.full((len(features),), sigma, device=like.device)
            velocity = self.model(batch, sigmas, condition=condition)
            total += (velocity.float() - wanted.to(velocity.device)).square().mean((1, 2, 3)).cpu()
        own, rest = total[0], total[1:].mean()
        return float((rest - own) / rest)


class JudgeFiles(Protocol):
    """A judge that is not loaded yet, so that it can be sent to another process."""

    def on(self, device: str) -> CaptionJudge:
        """Loaded on a device of this process."""

    def versions(self) -> dict[str, str]:
        """What has to be the same on all machines for the same judgement."""


@dataclass(frozen=True)
class Judging:
    """How well a caption fits its picture; what is known of it: (caption, others' captions, seed)."""

    judge: CaptionJudge | JudgeFiles
    limits: Limits = LIMITS
    at_once: ClassVar[int] = 1
    silence: ClassVar[float] = 30 * 60.0
    model: ClassVar[bool] = True

    def here(self) -> Callable[[Path, tuple], float | Failed]:
        """By a CaptionJudge."""
        return self._by(self.judge)

    def begin(self, device: str) -> Callable[[Path, tuple], float | Failed]:
        """By JudgeFiles."""
        return self._by(self.judge.on(device))

    def _by(self, judge: CaptionJudge) -> Callable[[Path, tuple], float | Failed]:
        def gain(path: Path, known: tuple[str, Sequence[str], int]) -> float | Failed:
            found = read(path, self.limits)
            return found if isinstance(found, Failed) else judge.gain(found[0], *known)

        return gain

    def versions(self) -> dict[str, str]:
        return {**installed("Pillow", "numpy"), **self.judge.versions()}


def fits(
    records: Sequence[PictureRecord],
    judging: Judging,
    progress: Callable[[int, int], None] = lambda done, total: None,
    over: Map = one_by_one,
) -> dict[int, float]:
    """How well the first caption of each picture fits, by index: its gain, of the median of all.

    Empty where the model cannot tell captions apart. A picture without a caption or others is left out.
    """
    captions = ["" if record.drop or not record.captions else record.captions[0] for record in records]
    gains, total = {}, sum(map(bool, captions))
    for done, (index, gain) in enumerate(over(judging, _beside_others(records, captions)), 1):
        progress(done, total)
        if not isinstance(gain, Failed):
            gains[index] = gain
    usual = float(np.median(list(gains.values()))) if gains else 0.0
    return {index: gains[index] / usual for index in sorted(gains)} if usual > 0 else {}


def _beside_others(records: Sequence[PictureRecord], captions: Sequence[str]) -> Iterator[Item]:
    """Pictures with a caption and others' captions, of which some are drawn."""
    dice = random.Random(0)
    for index, (record, caption) in enumerate(zip(records, captions, strict=True)):
        others = drawn_others(captions, index, dice)
        if caption and others:
            yield Item(index, record.path, (caption, others, index))


def _pixels(image: Image.Image, side: int) -> Tensor:
    """[1,3,H,W] in [-1,1] with about side x side pixels."""
    image = flattened(image)
    scale = side / (image.width * image.height) ** 0.5
    size = tuple(max(1, round(s * scale / MULTIPLE)) * MULTIPLE for s in image.size)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


def drawn_others(captions: Sequence[str], index: int, dice: random.Random, count: int = OTHERS) -> list[str]:
    """Different captions of other pictures; fewer where there are no more."""
    different = sorted(set(captions) - {captions[index], ""})
    return dice.sample(different, min(count, len(different)))
