"""What can be put around the blocks of a forward without another loop over them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .memo import RunMemo
from .sequence import Prepared, Span, Time

BlockCall = Callable[[Tensor, Span], Tensor]


class BlockHook:
    """One concern around the blocks of one forward; the first of a list is the outermost.

    stack: the name of the blocks' list in S3DiT, such as "layers". hidden: [B, S, D].
    capturable: whether the calls may be recorded in a CUDA graph; with one that may not, steps run eagerly.
    """

    capturable = True

    def prepare(
        self, model: nn.Module, x: Tensor, prepared: Prepared, time: Time, memo: RunMemo
    ) -> BlockHook:
        """The hook that this forward uses, made before its first block.

        model: the S3DiT; x: its latent [B, C, H, W].
        Captions are refined before this call, with this hook's `enter`, `block` and `leave` around them.
        """
        return self

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        """What the first block of a stack gets."""
        return hidden, span

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        """Calls block `index`, or does something else in its place."""
        return call(hidden, span)

    def leave(self, stack: str, hidden: Tensor) -> Tensor:
        """What comes out of a stack."""
        return hidden


class Options(BlockHook):
    """Hands options to the attention of every block."""

    def __init__(self, options: dict) -> None:
        self.options = options

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        return hidden, span._replace(options=self.options)
