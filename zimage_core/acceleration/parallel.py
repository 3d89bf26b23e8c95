"""One picture on several devices: each process has a part of the tokens, and in attention some of the heads.

Ulysses (arXiv 2309.14509) with parts of any size: 30 heads and any number of tokens are divided as evenly as
they can be, nothing is padded. Before attention a process gives the others their heads of its tokens, and
gets its heads of all; behind it the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model.backends import attention
from ..model.hooks import BlockHook
from ..model.memo import RunMemo
from ..model.sequence import ByToken, Prepared, Scales, Span, Time
from .streaming import STEP_STACKS


def parts(count: int, size: int) -> list[int]:
    """So many things for each of `size` processes, as evenly as can be."""
    return [count * (rank + 1) // size - count * rank // size for rank in range(size)]


@dataclass(frozen=True, eq=False)
class Share:
    """How the tokens of a sequence are divided. sizes: of each process's part, in order."""

    group: Any
    rank: int
    sizes: tuple[int, ...]

    @property
    def start(self) -> int:
        return sum(self.sizes[: self.rank])

    def mine(self, tokens: Tensor) -> Tensor:
        """[B, S, ...] -> this process's part of it."""
        return tokens.narrow(1, self.start, self.sizes[self.rank])

    def whole(self, tokens: Tensor) -> Tensor:
        """This process's part -> [B, S, ...], on every process."""
        longest, mine = max(self.sizes), tokens.shape[1]
        sent = tokens.new_zeros(tokens.shape[0], longest, *tokens.shape[2:])  # all must be of one size
        sent[:, :mine] = tokens
        found = [torch.empty_like(sent) for _ in self.sizes]
        dist.all_gather(found, sent, group=self.group)
        return torch.cat([part[:, :size] for part, size in zip(found, self.sizes, strict=True)], dim=1)

    def scales(self, scales: Scales) -> Scales:
        """A block's modulation, for the part of the tokens."""

        def part(factor: Tensor | ByToken) -> Tensor | ByToken:
            if isinstance(factor, Tensor):
                return factor
            return factor._replace(start=min(max(factor.start - self.start, 0), self.sizes[self.rank]))

        return Scales(*map(part, scales.factors), *scales[4:])


class Parallel(BlockHook):
    """The tokens of the image and of the layers, divided among the processes of a group.

    It is the outermost hook; those within see a part of the tokens, and `span.share` says which. All
    processes call the same forwards in the same order. Raises ValueError for more processes than heads, and
    where torch.distributed has none.
    """

    capturable = False

    def __init__(self, group: Any = None) -> None:
        """group: None: all processes."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "no processes share this picture: start the program by torchrun --nproc-per-node N, and call "
                "torch.distributed.init_process_group() first"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.shares: dict[str, Share] = {}

    def prepare(
        self, model: nn.Module, x: Tensor, prepared: Prepared, time: Time, memo: RunMemo
    ) -> BlockHook:
        self.check(model)
        return self

    def check(self, model: nn.Module) -> None:
        heads = model.config.n_heads
        if self.size > heads:
            raise ValueError(
                f"{self.size} processes for {heads} heads of attention: each needs one, start at most {heads}"
            )

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of all processes' tensors, on each."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def of_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, on each."""
        return self.total(tensor if self.rank == 0 else torch.zeros_like(tensor))

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        if stack not in STEP_STACKS or self.size == 1:
            return hidden, span
        share = self.shares[stack] = Share(self.group, self.rank, tuple(parts(hidden.shape[1], self.size)))
        attend = Ulysses(share, span.attend or plain)
        return share.mine(hidden), span._replace(freqs=share.mine(span.freqs), attend=attend, share=share)

    def leave(self, stack: str, hidden: Tensor) -> Tensor:
        share = self.shares.pop(stack, None)
        return hidden if share is None else share.whole(hidden)


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict) -> Tensor:
    return attention(q, k, v, bias).flatten(2)


@dataclass(frozen=True, eq=False)
class Ulysses:
    """Attention of all tokens by each process for its heads. inner: what does it, as `Span.attend`.

    Where there are fewer heads of keys and values than processes, they are repeated for the heads that share
    them; else heads that share them stay together.
    """

    share: Share
    inner: Any

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict) -> Tensor:
        size, width = len(self.share.sizes), q.shape[-1]
        if k.shape[2] < size:
            k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in (k, v))
        groups = q.shape[2] // k.shape[2]
        keys = parts(k.shape[2], size)
        queries = [count * groups for count in keys]
        sent = [
            torch.cat(heads, dim=2)
            for heads in zip(q.split(queries, 2), k.split(keys, 2), v.split(keys, 2), strict=True)
        ]
        mine = keys[self.share.rank]
        found = torch.cat(self._exchange(sent, [(n, mine * (groups + 2)) for n in self.share.sizes]), dim=1)
        out = self.inner(*found.split((mine * groups, mine, mine), dim=2), bias, options)
        heads = out.unflatten(2, (-1, width)).split(self.share.sizes, dim=1)
        tokens = self.share.sizes[self.share.rank]
        return torch.cat(self._exchange(heads, [(tokens, n) for n in queries]), dim=2).flatten(2)

    def _exchange(self, sent: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """A tensor [B, tokens, heads, D] to each process, and one of these tokens and heads from each."""
        batch, _, _, width = sent[0].shape
        given = torch.cat([part.flatten() for part in sent])
        sizes = [batch * tokens * heads * width for tokens, heads in shapes]
        found = given.new_empty(sum(sizes))
        numbers = [part.numel() for part in sent]
        dist.all_to_all_single(found, given, sizes, numbers, group=self.share.group)
        return [
            part.view(batch, *shape, width) for part, shape in zip(found.split(sizes), shapes, strict=True)
        ]
