"""Blocks by torch.compile: compiled once for all of them, whatever the length of prompts and the size."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..model.hooks import BlockHook
from ..model.s3dit import Block
from ..model.sequence import Scales, Span


def _run(block: Block, hidden: Tensor, span: Span, scales: Scales) -> Tensor:
    return block(hidden, span, scales)


class Compiled(BlockHook):
    """To be the last of a list, so that what other hooks do around blocks stays outside."""

    capturable = False  # a recompilation in a recording would end it

    def __init__(self) -> None:
        self.run = torch.compile(_run)

    def block(self, stack: str, index: int, call: partial, hidden: Tensor, span: Span) -> Tensor:
        scales = call.keywords["scales"]
        if scales is None:  # the caption's refiner, once in a run
            return call(hidden, span)
        for tensor in (hidden, span.freqs):
            torch._dynamo.maybe_mark_dynamic(tensor, 1)
        return self.run(call.func, hidden, span, scales)
