"""Captions, tokens and what blocks need beside them. Neutral ground: it knows no network."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def joined(features: Sequence[Tensor]) -> Tensor:
    """Features [b, l, width] of any lengths -> one batch [B, L, width], zeros up to the longest."""
    return pad_sequence([row for part in features for row in part], batch_first=True)


def real_tokens(lengths: Sequence[int], longest: int, device: torch.device | None = None) -> Tensor:
    """bool [B, longest]: which tokens of right-padded sequences are no padding."""
    return torch.arange(longest, device=device) < torch.tensor(lengths, device=device)[:, None]


@dataclass(frozen=True, eq=False)
class Captions:
    """What the text encoder made of a batch of prompts.

    features: [B, L, width], right-padded; lengths: real tokens of each, B numbers of 1 to L.
    Raises ValueError when their counts differ.
    """

    features: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        batch, longest = self.features.shape[:2]
        if len(self.lengths) != batch or not all(1 <= length <= longest for length in self.lengths):
            raise ValueError(
                f"{batch} captions of {longest} tokens have the lengths {list(self.lengths)}: expected "
                f"{batch} lengths of 1 to {longest}"
            )

    @classmethod
    def whole(cls, features: Tensor) -> Captions:
        """Features without padding."""
        return cls(features, (features.shape[1],) * features.shape[0])

    @classmethod
    def masked(cls, features: Tensor, mask: Tensor | None) -> Captions:
        """mask: [b, l] of real tokens, b = 1 or B; None: all are real.

        It may be shorter than the features, which a node has then added to: the tokens behind it are real.
        Tokens that it leaves out in front of real ones are taken out, since padding can only follow.
        """
        if mask is None:
            return cls.whole(features)
        batch, longest = features.shape[:2]
        real = mask.bool()[:, :longest].to(features.device)
        added = real.new_ones(real.shape[0], longest - real.shape[1])
        real = torch.cat((real, added), dim=1).expand(batch, -1)
        counts = real.sum(dim=1)
        order = None
        if not torch.equal(real, real_tokens(counts.tolist(), longest, real.device)):
            order = (~real).to(torch.uint8).argsort(dim=1, stable=True)
            features = features.gather(1, order[..., None].expand_as(features))
        return cls(features, tuple(counts.clamp(min=1).tolist()))

    @classmethod
    def of(cls, features: Tensor, num_tokens: Sequence[int] | int | None, mask: Tensor | None) -> Captions:
        """num_tokens: real tokens of each, B numbers; where they are not given the mask tells."""
        if num_tokens is None or isinstance(num_tokens, int):
            return cls.masked(features, mask)
        return cls(features, tuple(num_tokens))

    @classmethod
    def joined(cls, captions: Sequence[Captions]) -> Captions:
        """One batch of all, in order."""
        lengths = tuple(length for part in captions for length in part.lengths)
        return cls(joined([part.features for part in captions]), lengths)

    def repeated(self, count: int) -> Captions:
        """Each caption `count` times, one after the other."""
        lengths = tuple(length for length in self.lengths for _ in range(count))
        return replace(self, features=self.features.repeat_interleave(count, dim=0), lengths=lengths)

    def batched(self, batch: int) -> Captions:
        """The same for `batch` samples: all of them, or one caption for each."""
        if len(self.lengths) == batch:
            return self
        if len(self.lengths) != 1:
            raise ValueError(f"{len(self.lengths)} captions for {batch} latents")
        return replace(self, features=self.features.expand(batch, -1, -1), lengths=self.lengths * batch)

    def split(self, count: int) -> list[Captions]:
        """As many batches of equal size, each as long as its longest."""
        size = len(self.lengths) // count
        made = []
        for start in range(0, size * count, size):
            lengths = self.lengths[start : start + size]
            made.append(Captions(self.features[start : start + size, : max(lengths)], lengths))
        return made

    @property
    def mask(self) -> Tensor:
        """bool [B, L]."""
        return real_tokens(self.lengths, self.features.shape[1], self.features.device)


class Share(Protocol):
    """Which part of a sequence's tokens this process has."""

    def mine(self, tokens: Tensor) -> Tensor:
        """[B, S, ...] -> this process's part of it."""

    def whole(self, tokens: Tensor) -> Tensor:
        """This process's part -> [B, S, ...], on every process."""

    def scales(self, scales: Scales) -> Scales:
        """A block's modulation, for the part of the tokens."""


class Span(NamedTuple):
    """What a stack of blocks needs beside its tokens."""

    freqs: Tensor  # rope table [1 or B, S, 1, D/2, 2, 2]
    bias: Tensor | None = None  # bool [B, 1, 1, S] of the keys to see, or added to scores [1 or B, 1, S, S]
    options: dict = {}  # opaque, handed to attention
    attend: Callable | None = None  # (q, k, v, bias, options) -> out, in place of attention's own product
    share: Share | None = None  # where several processes have a part of the tokens each


@dataclass(frozen=True)
class Prepared:
    """What a condition makes of prompt and size once per run, before it sees the latent's values."""

    text: Tensor  # [B, L, D] refined
    image: Span  # of the image tokens, and of the references' before them
    joint: Span  # of all S tokens
    clean: Tensor | None = None  # with reference images [B, K, D]: refined tokens that come before theirs
    references: Tensor | None = None  # [B, R, D] embedded, to be refined together with the image

    @property
    def layout(self) -> Hashable:
        """What a step goes by beside the sizes of these tensors; None where a graph must not record it."""
        return ()

    @property
    def start(self) -> int:
        """How many tokens come before the image's."""
        parts = (self.clean, self.references, self.text)
        return sum(part.shape[1] for part in parts if part is not None)

    def beside(self, image: Tensor) -> Tensor:
        """Image tokens [B, N, D] -> after those of the references."""
        return image if self.references is None else torch.cat((self.references, image), dim=1)

    def join(self, image: Tensor) -> Tensor:
        """Refined tokens of `beside` -> all in one [B, S, D]: clean, references, text, image."""
        if self.references is None:
            return torch.cat((self.text, image), dim=1)
        count = self.references.shape[1]
        return torch.cat((self.clean, image[:, :count], self.text, image[:, count:]), dim=1)

    def picture(self, hidden: Tensor, count: int) -> Tensor:
        """The image's tokens of `join`, but for those behind the first `count`, which are padding."""
        return hidden[:, self.start : self.start + count]

    def by_latent(self, patches: Tensor) -> Tensor:
        """What is made of each token of `picture` -> [latents, count, ...]."""
        return patches


class ByToken(NamedTuple):
    """A factor of modulation for two kinds of tokens: the first `start` of a sequence are clean."""

    clean: Tensor  # [1, 1, D]
    noisy: Tensor  # [B, 1, D]
    start: int


Factor = Tensor | ByToken  # [B, 1, D], or one for clean and one for noisy tokens


class Weights(NamedTuple):
    """Of the norms of a block, [D] each, for what does their work; None: the norm is called."""

    attention1: Tensor | None = None
    feed_forward1: Tensor | None = None
    attention2: Tensor | None = None
    feed_forward2: Tensor | None = None
    q: Tensor | None = None
    k: Tensor | None = None
    both: Tensor | None = None  # [2, D] of q and k, for torch's operators on cards


NO_WEIGHTS = Weights()


class Scales(NamedTuple):
    """What the timestep does to a block: each part's scale before it and gate behind it."""

    attention: Factor
    attention_gate: Factor
    feed_forward: Factor
    feed_forward_gate: Factor
    weights: Weights = NO_WEIGHTS
    folded: tuple[Tensor | None, Tensor | None] = (None, None)  # [D]: first norms' weights times scale

    @property
    def factors(self) -> tuple[Factor, Factor, Factor, Factor]:
        return self[:4]


class Time(NamedTuple):
    """What depends on the timestep alone."""

    embedding: Tensor  # [B, t_dim], the adaLN input
    noise_refiner: list[Scales]  # of each block
    layers: list[Scales]
    final: Tensor  # [B, 1, D]

    def beside(self, clean: Time, prepared: Prepared) -> Time:
        """The same for sequences with references, which have the time `clean`."""
        return self._replace(
            noise_refiner=by_token(clean.noise_refiner, self.noise_refiner, prepared.references.shape[1]),
            layers=by_token(clean.layers, self.layers, prepared.start - prepared.text.shape[1]),
        )


def by_token(clean: list[Scales], noisy: list[Scales], start: int) -> list[Scales]:
    """Scales of blocks, for sequences of which the first `start` tokens are clean."""
    return [
        Scales(*(ByToken(*pair, start) for pair in zip(a.factors, b.factors, strict=True)), b.weights)
        for a, b in zip(clean, noisy, strict=True)
    ]


def with_noisy(scales: Scales, noisy: Scales) -> Scales:
    """`noisy` in place of a block's scales, or of their part for noisy tokens."""
    factors = (
        new if isinstance(old, Tensor) else old._replace(noisy=new)
        for old, new in zip(scales.factors, noisy.factors, strict=True)
    )
    return Scales(*factors, scales.weights)


def scale_tokens(x: Tensor, factor: Factor) -> Tensor:
    """x [B, S, D] times each token's factor. Without gradients it may overwrite x: give it a temporary."""
    if isinstance(factor, Tensor):
        return x * factor
    clean, noisy = x[:, : factor.start], x[:, factor.start :]
    if torch.is_grad_enabled():
        return torch.cat((clean * factor.clean, noisy * factor.noisy), dim=1)
    clean.mul_(factor.clean), noisy.mul_(factor.noisy)  # as they lie: half the traffic of memory
    return x
