"""Gradient checkpointing: of a block's values only its input is kept, the others are computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..model.hooks import BlockCall, BlockHook
from ..model.sequence import Span
from .streaming import Streaming

Held = Callable[[bool], AbstractContextManager]


class Checkpointing(BlockHook):
    """Around the blocks of a model that trains. Without gradients it does nothing but stream.

    streaming: brings each block's weights, for its way there and for its way back.
    """

    capturable = False

    def __init__(self, model: nn.Module, streaming: Streaming | None = None) -> None:
        self.model, self.streaming = model, streaming
        modulated = [name for name, p in model.named_parameters() if p.requires_grad and "adaLN" in name]
        if streaming and modulated:
            raise ValueError(
                f"{modulated[0]} trains, and its gradients pass by the blocks that are streamed: train "
                "attention and feed-forward only, or without streaming"
            )

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        if self.streaming is None:
            if not torch.is_grad_enabled():
                return call(hidden, span)
            return checkpoint(call, hidden, span, use_reentrant=False)
        streaming, key = self.streaming, (stack, index)
        if not torch.is_grad_enabled():
            return streaming.block(stack, index, call, hidden, span)

        def held(backwards: bool) -> AbstractContextManager:
            return streaming.held(key, backwards) if key in streaming.stream.blocks else nullcontext()

        block = getattr(self.model, stack)[index]
        trained = [p for p in block.parameters() if p.requires_grad]
        return _Again.apply(lambda x: call(x, span), held, hidden, *trained)


class _Again(torch.autograd.Function):
    """A block whose weights are there only while it computes, on the way there and on the way back."""

    @staticmethod
    def forward(
        ctx: Any, call: Callable[[Tensor], Tensor], held: Held, hidden: Tensor, *trained: Tensor
    ) -> Tensor:
        ctx.call, ctx.held, ctx.trained = call, held, trained
        ctx.save_for_backward(hidden)
        ctx.random = _random_state(hidden.device)
        with held(False), torch.enable_grad():  # as on the way back, where dropout and kernels go by it
            return call(hidden.detach()).detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        hidden = ctx.saved_tensors[0].detach().requires_grad_(ctx.needs_input_grad[2])
        wanted = [t for t in (hidden, *ctx.trained) if t.requires_grad]
        device = hidden.device
        with ctx.held(True), torch.random.fork_rng([device] if device.type == "cuda" else []):
            _set_random_state(ctx.random, device)
            with torch.enable_grad():
                out = ctx.call(hidden)
            found = dict(zip(map(id, wanted), _gradients(out, wanted, gradient), strict=True))
        return None, None, *(found.get(id(t)) for t in (hidden, *ctx.trained))


def _gradients(out: Tensor, wanted: Sequence[Tensor], gradient: Tensor) -> Sequence[Tensor | None]:
    return torch.autograd.grad(out, wanted, gradient, allow_unused=True)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of dropout, which must leave out the same values again."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
