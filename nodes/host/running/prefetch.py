"""Weights that the host streams are on their way to the card before a block's first layer asks for them."""

from __future__ import annotations

from torch import Tensor, nn

from ....zimage_core.model.hooks import BlockCall, BlockHook
from ....zimage_core.model.sequence import Span

try:
    from comfy import model_prefetch
except ImportError:  # an older host, which streams one layer at a time
    model_prefetch = None

FOR_ITSELF = "adaLN_modulation"  # needed once in a step and before its blocks, for all conditionings together


class Prefetch(BlockHook):
    """Fetches a whole block at a time, by the host's own queue of each stack.

    Outermost, so that the queue moves on at every block, whatever another hook does in its place. What an
    error leaves in it the host takes back when the node ends, as it does for its own networks.
    """

    capturable = False  # what is copied in a step, and to where, is up to the host

    def __init__(self, network: nn.Module, options: dict) -> None:
        self.network, self.options = network, options

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        self.blocks = getattr(self.network, stack)
        units = [[part for name, part in b.named_children() if name != FOR_ITSELF] for b in self.blocks]
        self.queue = model_prefetch.make_prefetch_queue(units, hidden.device, self.options)
        return hidden, span

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        model_prefetch.prefetch_queue_pop(self.queue, hidden.device, self.blocks[index])
        return call(hidden, span)

    def leave(self, stack: str, hidden: Tensor) -> Tensor:
        model_prefetch.prefetch_queue_pop(self.queue, hidden.device, None)
        return hidden


def prefetches(network: nn.Module, options: dict) -> list[Prefetch]:
    """One hook where the host has such queues and streams this network, else none."""
    asked = model_prefetch is not None and options.get("prefetch_dynamic_vbars")
    return [Prefetch(network, options)] if asked else []
