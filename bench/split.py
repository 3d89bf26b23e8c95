"""What a forward should take that several cards do together, predicted without one.

The forward of the process with the most heads runs on the meta device, with the exchanges left out; what it
would send is counted. Nothing overlaps: an exchange waits for the operators before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from bench.called import DTYPE, Calls, as_on_hopper
from bench.networks import CAPTION, inputs
from bench.operators import called_by
from bench.rates import CARDS, H200, Card
from bench.rows import prediction
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.acceleration import parallel
from zimage_core.acceleration.small_card import FOR_LIBRARIES, activations_of
from zimage_core.acceleration.streaming import RUN_STACKS, STEP_STACKS, bytes_of
from zimage_core.model import backends
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

COUNTS, SIZES = (1, 2, 4, 6), (1024, 2048)
RTX_4090 = next(card for card in CARDS if card.name == "RTX 4090")


@dataclass(frozen=True)
class Link:
    """Between cards. rate: GB/s that a card sends while it receives as much, 0.8 of the data sheet."""

    name: str
    rate: float
    start: float = 20e-6  # seconds: no exchange is done sooner


NVLINK = Link("NVLink", 360)  # of 450, fourth generation
LINKS = ((H200, NVLINK), (H200, Link("PCIe 5", 50)), (RTX_4090, Link("PCIe 4", 20)))


class Alone(parallel.Parallel):
    """One of so many processes, without the others. sent: bytes of each exchange."""

    def __init__(self, size: int) -> None:
        self.group, self.size, self.shares, self.sent = None, size, {}, []
        heads = parallel.parts(S3DiTConfig.n_heads, size)
        self.rank = heads.index(max(heads))

    def whole(self, share: parallel.Share, tokens: Tensor) -> Tensor:
        self.sent.append(max(share.sizes) * tokens[:, 0].nbytes * (self.size - 1))
        return tokens.new_empty(tokens.shape[0], sum(share.sizes), *tokens.shape[2:])

    def exchange(
        self, one: parallel.Ulysses, sent: Sequence[Tensor], shapes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        self.sent.append(sum(part.nbytes for at, part in enumerate(sent) if at != self.rank))
        batch, _, _, width = sent[0].shape
        return [sent[0].new_empty(batch, *shape, width) for shape in shapes]


def counted(size: int, pixels: int) -> tuple[Calls, list[int]]:
    """The operators of a later step, and the bytes of its exchanges."""
    model = S3DiT(S3DiTConfig(), device="meta", dtype=DTYPE)
    x, caption = inputs(model.config, pixels, "meta", DTYPE)
    hook, memo, condition = Alone(size), RunMemo(), Prompt(Captions.whole(caption))

    def step() -> None:
        hook.sent.clear()
        model(x, torch.empty(1, device="meta"), condition=condition, hooks=[hook], memo=memo)

    with (
        mock.patch.object(parallel.Share, "whole", lambda share, tokens: hook.whole(share, tokens)),
        mock.patch.object(parallel.Ulysses, "_exchange", lambda one, *given: hook.exchange(one, *given)),
        torch.no_grad(),
    ):
        called_by(step)
        return Counter(called_by(step)), list(hook.sent)


def seconds(card: Card, link: Link, calls: Calls, sent: Sequence[int]) -> float:
    computed = sum(n * card.seconds(operator) for operator, n in calls.items())
    return computed + sum(max(link.start, size / link.rate / 1e9) for size in sent)


def held(size: int, pixels: int) -> int:
    """Bytes of a card that draws with others, each with its part of the transformer's weights."""
    model = S3DiT(S3DiTConfig(), device="meta", dtype=DTYPE)
    blocks = [block for stack in (*STEP_STACKS, *RUN_STACKS) for block in getattr(model, stack, ())]
    largest = max(bytes_of(list(block.parameters())) for block in blocks)
    modulated = [block.adaLN_modulation for block in blocks if hasattr(block, "adaLN_modulation")]
    modulation = sum(bytes_of(list(each.parameters())) for each in modulated)
    tokens = (pixels // 16) ** 2 + CAPTION
    return (
        bytes_of(list(model.parameters())) // size
        + modulation  # of all blocks, before the first
        + 2 * largest  # one that computes, and the next
        + activations_of(model, tokens) // size
        + FOR_LIBRARIES
    )


def run() -> Iterator[dict]:
    as_on_hopper(backends)
    for size in COUNTS[1:]:
        label = f"{size} cards, weights in parts, 1024x1024: each holds"
        yield prediction(label, held(size, 1024) / 1e9, "GB", "while the transformer runs")
    for pixels in SIZES:
        found = {size: counted(size, pixels) for size in COUNTS}
        for card, link in LINKS:
            alone = seconds(card, link, *found[1])
            for size in COUNTS[1:]:
                calls, sent = found[size]
                taken = seconds(card, link, calls, sent)
                label = f"{size} {card.name} by {link.name}, {pixels}x{pixels}"
                about = f"{sum(sent) / 1e9:.2f} GB sent by each"
                yield prediction(f"{label}: forward", 1000 * taken, "ms", about)
                yield prediction(
                    f"{label}: one card over it", alone / taken, "x", f"{1000 * alone:.1f} ms alone"
                )
