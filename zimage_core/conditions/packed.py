"""Several conditions of the same latents in one pass, such as the two of a guided step.

Their sequences lie one behind the other, with no padding between them. Linear layers and norms do not see
where one ends; attention goes through each by itself. So weights are read once for all of them, and all
operators but attention's are called once.

Image tokens are refined before they meet a caption. Where none of them is padding, their places to one
another are the same with every caption: they are refined once, and each sequence gets them.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import backends
from ..model.attention import Attention
from ..model.hooks import BlockHook
from ..model.memo import RunMemo
from ..model.s3dit import Condition, Prompt, S3DiT
from ..model.sequence import Prepared, Span
from .regions import Regions


@dataclass(frozen=True, eq=False)
class Packed:
    """Conditions of latents [B, C, H, W]; the velocities of each follow one another, [n * B, C, H, W].

    apart: whether every latent has conditions of its own: those of all latents for the first of the n, then
    for the next, and so on. All have one sigma then, [1]. Without it each condition is for all latents.
    memo: of the run, which keeps what one condition makes, for it alone and in any company.
    """

    conditions: Sequence[Prompt | Regions]
    apart: bool = False
    memo: weakref.ref[RunMemo] | None = None  # it holds this object

    def prepare(self, model: S3DiT, x: Tensor, hooks: Sequence[BlockHook] = ()) -> PackedPrepared:
        """Raises ValueError for reference images, and for counts that do not fit."""
        if self.apart and len(self.conditions) % x.shape[0]:
            raise ValueError(f"{len(self.conditions)} conditions for {x.shape[0]} latents, each with its own")
        memo, latents = (self.memo and self.memo()) or RunMemo(), x[:1] if self.apart else x
        key = (latents.shape, x.dtype, x.device)  # as the model's own

        def part(condition: Prompt | Regions) -> Prepared:
            return memo.once((condition, *key), lambda: condition.prepare(model, latents, hooks))

        parts = [part(condition) for condition in self.conditions]
        if any(part.clean is not None for part in parts):
            raise ValueError("conditions with reference images cannot be packed: run one after the other")
        attention = model.layers[0].attention  # blocks differ by their weights, which none of it reads
        height, width = model.patches(x)
        grids = {getattr(condition, "prompt", condition).grid for condition in self.conditions}
        once = height * width % model.config.pad_multiple == 0 and len(grids) == 1
        rows = parts[0].text.shape[0]
        return PackedPrepared(
            text=torch.cat([part.text for part in parts], dim=1),
            image=parts[0].image if once else joined([part.image for part in parts], attention, rows),
            joint=joined([part.joint for part in parts], attention, rows),
            lengths=tuple(part.text.shape[1] for part in parts),
            once=once,
        )


def in_one_pass(conditions: Sequence[Condition], model: S3DiT, memo: RunMemo) -> list[Condition]:
    """Conditions of latents of one sigma -> the same, packed where they can be.

    Prompts of a batch that pad to different lengths are packed too. With reference images nothing is.
    """
    if not all(isinstance(condition, Prompt | Regions) for condition in conditions):
        return list(conditions)
    kept = weakref.ref(memo)
    if all(isinstance(condition, Prompt) for condition in conditions):
        lengths = ({model.padded(n) for n in prompt.captions.lengths} for prompt in conditions)
        if any(len(each) > 1 for each in lengths):
            return [Packed([row for prompt in conditions for row in parts_of(prompt)], True, kept)]
    return [Packed(conditions, memo=kept)] if len(conditions) > 1 else list(conditions)


def velocities(
    passes: Sequence[Condition], model: S3DiT, x: Tensor, timesteps: Tensor, **given: Any
) -> Tensor:
    """Of all conditions in what `in_one_pass` returned; given: to each forward, such as hooks and memo."""

    def velocity(condition: Condition) -> Tensor:
        one = isinstance(condition, Packed) and condition.apart
        return model(x, timesteps[:1] if one else timesteps, condition=condition, **given)

    return torch.cat([velocity(each) for each in passes])


def parts_of(prompt: Prompt, count: int | None = None) -> list[Prompt]:
    """A batch of prompts -> `count` of equal size, or each by itself."""
    captions = prompt.captions
    return [replace(prompt, captions=part) for part in captions.split(count or len(captions.lengths))]


@dataclass(frozen=True)
class PackedPrepared(Prepared):
    """Sequences one behind the other: text 1, image 1, text 2, image 2 and so on."""

    lengths: tuple[int, ...] = ()  # of each text
    once: bool = True  # whether the image's tokens are refined once for all

    @property
    def layout(self) -> Hashable:
        attend = self.joint.attend
        return (self.lengths, self.once) if not any(each is not None for each in attend.biases) else None

    def images(self, image: Tensor) -> list[Tensor]:
        """Tokens of the latents [B, N, D] -> those of each sequence [b, N, D]."""
        each = image.split(self.text.shape[0])
        return [each[index % len(each)] for index in range(len(self.lengths))]

    def beside(self, image: Tensor) -> Tensor:
        return image if self.once else torch.cat(self.images(image), dim=1)

    def join(self, image: Tensor) -> Tensor:
        images = self.images(image) if self.once else self.checked(image).chunk(len(self.lengths), dim=1)
        pairs = zip(self.text.split(self.lengths, dim=1), images, strict=True)
        return torch.cat([tokens for pair in pairs for tokens in pair], dim=1)

    def picture(self, hidden: Tensor, count: int) -> Tensor:
        """Of each image, one behind the other."""
        padded = (hidden.shape[1] - sum(self.lengths)) // len(self.lengths)
        pieces = hidden.split([n for length in self.lengths for n in (length, padded)], dim=1)
        return torch.cat([image[:, :count] for image in pieces[1::2]], dim=1)

    def by_latent(self, patches: Tensor) -> Tensor:
        return torch.cat(self.checked(patches).chunk(len(self.lengths), dim=1))

    def checked(self, tokens: Tensor) -> Tensor:
        """Modulation makes as many rows as there are sigmas."""
        rows = self.text.shape[0]
        if tokens.shape[0] != rows:
            raise ValueError(f"{tokens.shape[0]} sigmas for packed sequences, expected {rows}")
        return tokens


class Segments(NamedTuple):
    """Attention of a packed sequence: its parts do not see one another."""

    lengths: tuple[int, ...]
    biases: tuple[Tensor | None, ...]
    starts: Tensor | None  # of the parts of all rows, where there is a kernel for all of them at once
    attention: Attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict) -> Tensor:
        if self.starts is not None:
            out = self.attention.attend_within(q, k, v, self.starts, max(self.lengths), options)
            if out is not None:
                return out
        parts = zip(*(t.split(self.lengths, dim=1) for t in (q, k, v)), self.biases, strict=True)
        return torch.cat([self.attention.attend(*part, options) for part in parts], dim=1)


def joined(parts: Sequence[Span], attention: Attention, rows: int) -> Span:
    """Spans of sequences -> that of these one behind the other, in so many rows."""
    batch = max(part.freqs.shape[0] for part in parts)
    freqs = [part.freqs.expand(batch, *part.freqs.shape[1:]) for part in parts]
    lengths, biases = tuple(each.shape[1] for each in freqs), tuple(part.bias for part in parts)
    masked = any(bias is not None for bias in biases)
    starts = None if masked else backends.starts(lengths * rows, freqs[0].device)
    return Span(torch.cat(freqs, dim=1), attend=Segments(lengths, biases, starts, attention))
