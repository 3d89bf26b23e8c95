"""Blocks by torch.compile: compiled once for all of them, whatever the length of prompts and the size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..model.hooks import BlockHook
from ..model.s3dit import Block
from ..model.sequence import Scales, Span


def _run(block: Block, hidden: Tensor, span: Span, scales: Scales) -> Tensor:
    return block(hidden, span, scales)


class Compiled(BlockHook):
    """To be the last of a list, so that what other hooks do around blocks stays outside.

    Where the machine lacks what compiling needs, blocks run as they are; report is told so, once.
    """

    capturable = False  # a recompilation in a recording would end it

    def __init__(self, report: Callable[[str], object] = logging.warning) -> None:
        self.run, self.report = torch.compile(_run), report

    def block(self, stack: str, index: int, call: partial, hidden: Tensor, span: Span) -> Tensor:
        scales = call.keywords["scales"]
        if scales is None:  # the caption's refiner, once in a run
            return call(hidden, span)
        for tensor in (hidden, span.freqs):
            torch._dynamo.maybe_mark_dynamic(tensor, 1)
        try:
            return self.run(call.func, hidden, span, scales)
        except RuntimeError as error:
            if (reason := why_not_compiled(error)) is None:
                raise
            self.run = _run
            self.report(f"torch.compile: off, it failed: {reason}. Results are exact instead.")
            return call(hidden, span)


def why_not_compiled(error: RuntimeError) -> str | None:
    """The telling line of what a compiler said, in 200 characters; None: the error is of another kind.

    Such as that Python's headers are missing, or that a card is too old for Triton.
    """
    from torch._dynamo.exc import BackendCompilerFailed  # here: it takes a second

    if not isinstance(error, BackendCompilerFailed):
        return None
    lines = [line.strip() for line in str(error.inner_exception).splitlines() if line.strip()]
    telling = (line for line in lines if "error:" in line.lower())
    return next(telling, lines[0] if lines else type(error.inner_exception).__name__)[:200].rstrip(".")
