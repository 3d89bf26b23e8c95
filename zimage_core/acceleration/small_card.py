"""The parts of a pipeline on a card that does not hold them all: they take turns within a budget."""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, finalize, ref

import torch
from torch import Tensor, nn

from ..model.hooks import BlockHook
from ..model.s3dit import Condition, S3DiT
from .parallel import Parallel
from .streaming import RUN_STACKS, STEP_STACKS, Key, Streaming, blocks_of, bytes_of, matrices, stream_layers
from .tiles import bytes_for, decode_in_tiles, tile_side

log = logging.getLogger(__name__)

UNITS = {"GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20}
FOR_LIBRARIES = 200 * 10**6  # bytes of a card for cuBLAS, cuDNN and what the allocator cannot use
# What computes beside the weights, in bytes: measured by tests, which hold these from both sides.
PER_TOKEN = 13  # of the S3-DiT: times its width and the size of its type
PER_TEXT_TOKEN = 6  # of the text encoder: times the width of its feed-forward and the size of its type


class NoRoom(ValueError):
    """A picture does not fit into the memory that may be used."""


def size_of(vram: str | int) -> int:
    """Bytes: a number, or a text such as "6GB" or "5.5 GiB". Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM]i?B)\s*", str(vram), re.IGNORECASE)
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found else vram
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise ValueError(f'vram is {vram!r}, expected a size with its unit, such as "6GB" or "800MB"')
    return size


def left_on(device: torch.device) -> int:
    """Bytes that are free on a card now; of the computer's own memory, as much as one may ask for."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else sys.maxsize


def resident_blocks(sizes: dict[Key, int], room: int) -> set[Key]:
    """Which blocks can stay on a card with so many bytes left, beside two slots for what is streamed.

    sizes: bytes of each block of a step, in order. Those that stay are spread evenly over it.
    """
    largest, count = max(sizes.values()), len(sizes)
    stay = min(max((room - 2 * largest) // largest, 0), count)
    return {key for at, key in enumerate(sizes) if (at + 1) * stay // count > at * stay // count}


_holders: WeakKeyDictionary[nn.Module, ref[SmallCard]] = WeakKeyDictionary()  # who had a module last


class Stay:
    """A module on the card, but for what is streamed; `leave` puts back what it had before.

    stream: makes the hooks or handles for what is streamed. Where the card is too full, nothing stays on it.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        streamed: Sequence[Tensor] = (),
        stream: Callable[[Stay], None] = lambda stay: None,
    ) -> None:
        self.module = module  # else another one may get its id, by which it is found
        away = {id(weight) for weight in streamed}
        tensors = (*module.parameters(), *module.buffers())
        self.sources = [(tensor, tensor.data) for tensor in tensors if id(tensor) not in away]
        self.bytes = self.used = 0  # held, and what is computed with while it is its turn
        self.hooks: Sequence[BlockHook] = ()
        self.handles: list = []
        try:
            for tensor, source in self.sources:
                tensor.data = source.to(device)
            stream(self)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        for tensor, source in self.sources:
            tensor.data = source
        for handle in self.handles:
            handle.remove()
        self.hooks, self.handles = (), []


def _all_leave(stays: dict[tuple, Stay]) -> None:
    while stays:
        stays.popitem()[1].leave()


class SmallCard:
    """A device of which so many bytes may be used. Parts stay there until another one needs the room.

    When it is gone, they are where they were before.
    """

    def __init__(self, vram: str | int, device: torch.device) -> None:
        self.vram, self.device = size_of(vram), device
        self.budget = self.vram - (FOR_LIBRARIES if device.type == "cuda" else 0)
        self.stays: dict[tuple, Stay] = {}
        self.said: set[int] = set()  # numbers of blocks of which the log told that they stay
        finalize(self, _all_leave, self.stays).atexit = False

    def leave(self, module: nn.Module | None = None) -> None:
        """Takes a module back from the card; None: all of them."""
        for key in [key for key in self.stays if module is None or key[0] == id(module)]:
            self.stays.pop(key).leave()

    @property
    def left(self) -> int:
        """Bytes that are not taken by parts whose turn it is."""
        return self.budget - sum(stay.bytes + stay.used for stay in self.stays.values() if stay.used)

    def fits(self, model: nn.Module, tokens: int) -> bool:
        """Whether forwards of an S3DiT with so many tokens can be run."""
        blocks = blocks_of(model, (*STEP_STACKS, *RUN_STACKS)).values()
        small = bytes_of(all_of(model)) - sum(map(bytes_of, blocks))
        return small + 2 * max(map(bytes_of, blocks)) + activations_of(model, tokens) <= self.left

    @contextmanager
    def transformer(self, model: nn.Module, tokens: int) -> Iterator[Sequence[BlockHook]]:
        """Gives the hooks that its forwards need. tokens: of all samples of a batch, captions included."""
        steps, runs = (blocks_of(model, stacks) for stacks in (STEP_STACKS, RUN_STACKS))
        streamable = [weight for weights in (steps | runs).values() for weight in weights]
        small = bytes_of(all_of(model)) - bytes_of(streamable)
        activations = activations_of(model, tokens)
        sizes = {key: bytes_of(weights) for key, weights in (steps | runs).items()}
        room = self.left - small - activations
        resident: Collection[Key] = set(sizes)
        if sum(sizes.values()) > room:
            resident = resident_blocks({key: sizes[key] for key in steps}, room)
        streamed = [w for key, weights in (steps | runs).items() if key not in resident for w in weights]
        slots = 2 * max((size for key, size in sizes.items() if key not in resident), default=0)
        holds = small + slots + sum(sizes[key] for key in resident)

        def stream(stay: Stay) -> None:
            if streamed:
                stay.hooks = (Streaming(model, self.device, resident),)
                if len(resident) not in self.said:
                    text = "Z-Image transformer: %d of %d blocks stay on %s, the others come at every step"
                    log.info(text, len(resident), len(steps), self.device)
                self.said.add(len(resident))

        plan = (frozenset(resident),)
        with self._turn(model, plan, holds, activations, streamed, stream) as stay:
            yield stay.hooks

    @contextmanager
    def text_encoder(self, encoder: nn.Module, tokens: int) -> Iterator[None]:
        """Its layers are streamed, each once a prompt; rows of its embedding are looked up where it lies."""
        layers, embedding = encoder.model.layers, encoder.model.embed_tokens
        streamed = [weight for layer in layers for weight in matrices(layer)] + [embedding.weight]
        slots = 2 * max(bytes_of(matrices(layer)) for layer in layers)
        wide, itemsize = encoder.config.intermediate_size, embedding.weight.element_size()
        activations = PER_TEXT_TOKEN * tokens * wide * itemsize

        device, home = self.device, embedding.weight.device

        def stream(stay: Stay) -> None:
            stay.handles = [
                *stream_layers(layers, device),
                embedding.register_forward_pre_hook(lambda module, args: (args[0].to(home),)),
                embedding.register_forward_hook(lambda module, args, out: out.to(device)),
            ]

        holds = bytes_of(all_of(encoder)) - bytes_of(streamed) + slots
        with self._turn(encoder, (), holds, activations, streamed, stream):
            yield

    @contextmanager
    def whole(self, module: nn.Module, activations: int = 0) -> Iterator[None]:
        """A part that is not streamed."""
        with self._turn(module, (), bytes_of(all_of(module)), activations):
            yield

    def decode(self, autoencoder: nn.Module, latent: Tensor, parallel: Parallel | None = None) -> Tensor:
        """Raw latents [B, 16, h, w] -> pixels in float32: all at once, one by one, or in tiles.

        parallel: who shares the tiles.
        """
        decode, factor = autoencoder.decode, autoencoder.config.downscale
        room = self.left - bytes_of(all_of(autoencoder))
        one = bytes_for(autoencoder, latent.shape[-2] * latent.shape[-1] * factor**2)
        at_once = min(max(room // one, 1), latent.shape[0])
        if one <= room:
            with self.whole(autoencoder, at_once * one):
                return torch.cat([decode(some).float() for some in latent.split(at_once)])
        side = tile_side(autoencoder, room)
        log.warning("the picture is decoded in tiles of %d pixels, to fit into memory", side * factor)
        with self.whole(autoencoder, bytes_for(autoencoder, (side * factor) ** 2)):
            return torch.cat(
                [decode_in_tiles(decode, some, side, factor, parallel) for some in latent.split(1)]
            )

    @contextmanager
    def _turn(
        self, module: nn.Module, plan: tuple, holds: int, activations: int, *streamed: Any
    ) -> Iterator[Stay]:
        """streamed: as in Stay."""
        if holds + activations > self.left:
            needed = holds + activations + self.vram - self.left
            raise NoRoom(
                f"{type(module).__name__} needs {said(needed)} at this size, and vram is {said(self.vram)}: "
                "take a smaller picture, fewer at once, or give it more."
            )
        key = (id(module), *plan)
        stay = self.stays.pop(key, None)
        for other in [key for key, kept in self.stays.items() if not kept.used]:
            idle = sum(kept.bytes for kept in self.stays.values() if not kept.used)
            if other[0] == key[0] or idle + holds + activations > self.left:
                self.stays.pop(other).leave()
        if stay is None:
            card = _holders[module]() if module in _holders else None
            if card not in (None, self):
                card.leave(module)  # of another pipeline, which would take the weights away from this one
            stay = Stay(module, self.device, *streamed)
            _holders[module] = ref(self)
        before, stay.bytes, stay.used = stay.used, holds, max(activations, 1)
        self.stays[key] = stay  # the latest comes last
        try:
            yield stay
        finally:
            stay.used = before  # in a picture that is made during another one, as a callback may do


def said(size: int) -> str:
    """Bytes in words, no less than they are."""
    return f"{math.ceil(size / 1e7) / 100:g} GB" if size >= 1e9 else f"{math.ceil(size / 1e6)} MB"


def all_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def activations_of(model: S3DiT, tokens: int) -> int:
    """Bytes that a forward of so many tokens computes with."""
    weight = model.x_pad_token
    return PER_TOKEN * tokens * weight.shape[-1] * weight.element_size()


def count_tokens(condition: Condition, model: S3DiT, x: Tensor) -> int:
    """Of a forward of latents x with all its samples; near enough where there are references."""
    if packed := getattr(condition, "conditions", ()):
        latents = x[:1] if condition.apart else x
        return sum(count_tokens(each, model, latents) for each in packed)
    prompt = getattr(condition, "prompt", condition)
    captions = [prompt.captions, *(region.captions for region in getattr(condition, "regions", ()))]
    images = [x, *getattr(condition, "latents", ())]
    seen = [*getattr(condition, "contexts", ()), *getattr(condition, "siglip", ())]
    lengths = [max(each.lengths) for each in captions]
    lengths += [math.prod(model.patches(each)) for each in images]
    lengths += [math.prod(each.shape[1:-1]) for each in seen if each is not None]
    return x.shape[0] * sum(map(model.padded, lengths))
