"""Blocks whose weights stay in the computer's memory and come to the card one after the other.

Two buffers there take turns: while one block computes, the next one's weights are copied. What a block holds
is put back after each use, so that values are those of the file at any time, and results the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..model.hooks import BlockCall, BlockHook
from ..model.sequence import Span

ALIGNED = 512  # bytes, what the allocator of CUDA gives
STEP_STACKS = ("noise_refiner", "layers")  # in the order in which every step runs them
RUN_STACKS = ("context_refiner", "siglip_refiner")  # run once for a picture

Key = Hashable
Weights = list[nn.Parameter]


def matrices(block: nn.Module) -> Weights:
    """What is streamed of a block: its matrices, but for the modulation's, which time needs before it."""
    named = block.named_parameters()
    return [p for name, p in named if p.ndim == 2 and not name.startswith("adaLN_modulation")]


def still(block: nn.Module) -> Weights:
    """The same without what trains."""
    return [weight for weight in matrices(block) if not weight.requires_grad]


def bytes_of(weights: Sequence[Tensor]) -> int:
    return sum(-(-weight.nbytes // ALIGNED) * ALIGNED for weight in weights)


def blocks_of(
    model: nn.Module, stacks: Sequence[str], streamed: Callable[[nn.Module], Weights] = matrices
) -> dict[Key, Weights]:
    """(stack, index) -> what is streamed of each block, in order."""
    return {
        (stack, index): streamed(block)
        for stack in stacks
        for index, block in enumerate(getattr(model, stack, ()))
    }


class Slot:
    """Room on the device for one block's weights, and memory through which they come there."""

    def __init__(self, size: int, device: torch.device, copies: InTurn) -> None:
        self.room = torch.empty(size, dtype=torch.uint8, device=device)
        self.staging = copies.staging(self.room)
        self.copied, self.used = copies.event(), copies.event()
        self.holds: Key | None = None

    def views(self, weights: Sequence[Tensor], memory: Tensor) -> list[Tensor]:
        """Where each of these weights lies in room or staging memory, in its own shape and type."""
        at, found = 0, []
        for weight in weights:
            found.append(memory[at : at + weight.nbytes].view(weight.dtype).view(weight.shape))
            at += bytes_of([weight])
        return found


class InTurn:
    """Copies that are done when they are asked for: where there is no card."""

    def staging(self, room: Tensor) -> Tensor:
        return room

    def event(self) -> Any:
        return None

    def ready(self, slot: Slot) -> None:
        """Returns when the slot's staging memory may be written."""

    def send(self, slot: Slot, size: int) -> None:
        """Brings so many bytes from the staging memory to the room, once what used the room is done."""

    def wait(self, slot: Slot) -> None:
        """What is computed from here on finds the weights."""

    def release(self, slot: Slot) -> None:
        """What was computed so far is the last that needs the weights."""


class Beside(InTurn):
    """Copies on a stream of their own, beside the computation on a CUDA card. Nothing here waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def staging(self, room: Tensor) -> Tensor:
        return torch.empty(room.shape, dtype=room.dtype, pin_memory=True)

    def event(self) -> Any:
        return torch.cuda.Event()

    def ready(self, slot: Slot) -> None:
        slot.copied.synchronize()

    def send(self, slot: Slot, size: int) -> None:
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(slot.used)
            slot.room[:size].copy_(slot.staging[:size], non_blocking=True)
            slot.copied.record(self.stream)
        slot.room.record_stream(self.stream)

    def wait(self, slot: Slot) -> None:
        torch.cuda.current_stream().wait_event(slot.copied)

    def release(self, slot: Slot) -> None:
        slot.used.record()


def copies_for(device: torch.device) -> InTurn:
    return Beside(device) if device.type == "cuda" else InTurn()


class WeightStream:
    """Two slots for any number of blocks.

    order: in which they are asked for; again: over and over.
    """

    def __init__(
        self, blocks: Mapping[Key, Weights], order: Sequence[Key], device: torch.device, again: bool = True
    ) -> None:
        self.blocks, self.copies = blocks, copies_for(device)
        self.sources = {key: [weight.data for weight in weights] for key, weights in blocks.items()}
        size = max(map(bytes_of, self.sources.values()), default=0)
        self.slots = [Slot(size, device, self.copies) for _ in range(2)]  # the latest taken comes first
        self.following = dict(zip(order, order[1:], strict=False))
        self.preceding = dict(zip(order[1:], order, strict=False))
        if again and order:
            self.following[order[-1]] = order[0]

    def take(self, key: Key) -> None:
        """Gives a block its weights."""
        slot = next((slot for slot in self.slots if slot.holds == key), None)
        if slot is None:
            slot = self._fetch(key)
        if slot is self.slots[1]:
            self.slots.reverse()
        self.copies.wait(slot)
        views = slot.views(self.sources[key], slot.room)
        for weight, view in zip(self.blocks[key], views, strict=True):
            weight.data = view

    def give(self, key: Key, backwards: bool = False) -> None:
        """Takes them from it again, and fetches those of the block after it, or before it."""
        for weight, source in zip(self.blocks[key], self.sources[key], strict=True):
            weight.data = source
        self.copies.release(self.slots[0])
        following = (self.preceding if backwards else self.following).get(key)
        if following is not None and all(slot.holds != following for slot in self.slots):
            self._fetch(following)

    def _fetch(self, key: Key) -> Slot:
        """Into the slot that was used longer ago."""
        slot, weights = self.slots[1], self.sources[key]
        self.copies.ready(slot)
        slot.holds = None  # a part of them, where Ctrl-C ends the copy
        for view, weight in zip(slot.views(weights, slot.staging), weights, strict=True):
            view.copy_(weight)
        self.copies.send(slot, bytes_of(weights))
        slot.holds = key
        return slot


class Streaming(BlockHook):
    """Streams an S3DiT's blocks.

    resident: (stack, index) of those that are on the device already, like all else of the model. A step
    copies each of the others once; those that refine captions and references are copied once a run.
    training: what trains stays on the device, and after the last block the way back begins there.
    """

    capturable = False  # the copies wait for the block before

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        resident: Collection[Key] = (),
        training: bool = False,
    ) -> None:
        step, run = (
            {
                key: weights
                for key, weights in blocks_of(model, stacks, still if training else matrices).items()
                if key not in resident
            }
            for stacks in (STEP_STACKS, RUN_STACKS)
        )
        self.stream = WeightStream(step | run, list(step), device, again=not training)
        self.stream.following |= dict(zip(run, [*list(run)[1:], *list(step)[:1]], strict=False))

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        if (stack, index) not in self.stream.blocks:
            return call(hidden, span)
        with self.held((stack, index)):
            return call(hidden, span)

    @contextmanager
    def held(self, key: Key, backwards: bool = False) -> Iterator[None]:
        """A block has its weights; afterwards the next one's are fetched, or the one's before it."""
        self.stream.take(key)
        try:
            yield
        finally:
            self.stream.give(key, backwards)


def stream_layers(layers: Sequence[nn.Module], device: torch.device) -> list:
    """The same for modules that are called one after the other, without a loop that knows hooks.

    Returns handles; their `remove` ends it.
    """
    blocks = {index: matrices(layer) for index, layer in enumerate(layers)}
    stream, handles = WeightStream(blocks, list(blocks), device, again=False), []
    for index, layer in enumerate(layers):
        before, after = _around(stream, index)
        handles += [
            layer.register_forward_pre_hook(before),
            layer.register_forward_hook(after, always_call=True),
        ]
    return handles


def _around(stream: WeightStream, key: Key) -> tuple:
    return lambda module, args: stream.take(key), lambda module, args, out: stream.give(key)
