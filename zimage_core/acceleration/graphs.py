"""CUDA graphs of S3DiT.step: a forward that the processor issues once and the card repeats.

A step of small pictures waits for the processor that issues its kernels; a graph does not. The results are
those of the same operators on the same numbers, to the bit.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..model.hooks import BlockHook
from ..model.s3dit import S3DiT
from ..model.sequence import Prepared, Span, Time

GRAPHS = 4  # kept at most: two sizes of pictures with two lengths of prompts
ROOM = 1 << 30  # bytes of values on their way that a graph may keep from others


class Recording(Protocol):
    """What a capture returns: repeats what it recorded, from and into the same memory."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], Tensor]], tuple[Recording, Tensor]]


def tensors_of(prepared: Prepared) -> list[Tensor]:
    """Everything in it that a step reads."""
    found = []
    for field in fields(prepared):
        value = getattr(prepared, field.name)
        found += [t for t in (value[:2] if isinstance(value, Span) else (value,)) if isinstance(t, Tensor)]
    return found


def copied(prepared: Prepared) -> Prepared:
    def copy(value: Any) -> Any:
        if isinstance(value, Span):
            return value._replace(freqs=value.freqs.clone(), bias=copy(value.bias))
        return value.clone() if isinstance(value, Tensor) else value

    return replace(
        prepared, **{field.name: copy(getattr(prepared, field.name)) for field in fields(prepared)}
    )


@dataclass
class Graph:
    """One recorded step and the memory that it reads."""

    recording: Recording
    weights: tuple[int, ...]  # where the weights were
    x: Tensor
    timesteps: Tensor
    prepared: Prepared
    out: Tensor
    given: weakref.ref[Prepared]  # whose values `prepared` has

    def replay(self, x: Tensor, timesteps: Tensor, prepared: Prepared) -> Tensor:
        self.x.copy_(x), self.timesteps.copy_(timesteps)
        if self.given() is not prepared:
            for mine, theirs in zip(tensors_of(self.prepared), tensors_of(prepared), strict=True):
                mine.copy_(theirs)
            self.given = weakref.ref(prepared)
        self.recording.replay()
        return self.out.clone()


class Graphs:
    """Graphs of one network by sizes. What cannot be recorded runs as without.

    The first step of its sizes runs as usual, which builds kernels; the second is recorded.
    """

    def __init__(self, capture: Capture | None = None, room: int = ROOM, count: int = GRAPHS) -> None:
        self.capture, self.room, self.count = capture or CudaCapture(), room, count
        self.kept: OrderedDict[Hashable, Graph | None] = OrderedDict()  # None: seen once
        self.steps = self.replays = 0  # so many, and of them by a graph
        self.reason = ""  # why the last step was none
        self.failed = False  # to record; there is no second try

    def __deepcopy__(self, memo: dict) -> Graphs:
        """The same one: recordings cannot be copied, and copies of what holds them run the same network."""
        return self

    def clear(self) -> None:
        """Forget all, and give their memory back."""
        self.kept.clear()

    def step(
        self,
        model: S3DiT,
        x: Tensor,
        timesteps: Tensor,
        prepared: Prepared,
        time: Time,
        hooks: Sequence[BlockHook],
        obstacle: str = "",
    ) -> Tensor | None:
        """What S3DiT.step returns for these, or None: then it is to be called.

        time: not read, a graph makes it itself. obstacle: what else forbids a graph, in words.
        """
        self.steps += 1
        self.reason = obstacle or self.obstacle(model, x, prepared, hooks)
        if self.reason:
            return None
        sizes = tuple((t.shape, t.dtype) for t in (x, timesteps, *tensors_of(prepared)))
        key = (id(model), x.device, sizes, prepared.layout, tuple(type(hook) for hook in hooks))
        weights = pointers(model)
        graph = self.kept.get(key)
        if graph is not None and graph.weights != weights:  # changed, patched or moved
            self.clear()
        if key not in self.kept:
            self.kept[key] = None
            while len(self.kept) > self.count:
                self.kept.popitem(last=False)
            return None
        self.kept.move_to_end(key)
        if self.kept[key] is None:
            graph = self.record(model, x, timesteps, prepared, hooks, weights)
            if graph is None:
                return None
            self.kept[key] = graph
        self.replays += 1
        return self.kept[key].replay(x, timesteps, prepared)

    def obstacle(self, model: S3DiT, x: Tensor, prepared: Prepared, hooks: Sequence[BlockHook]) -> str:
        if self.failed:
            return "a step could not be recorded, as said before"
        if torch.is_grad_enabled():
            return "gradients are asked for"
        if prepared.clean is not None:
            return "there are reference images"
        if prepared.layout is None:
            return "prompts for regions are packed"
        for hook in hooks:
            if not hook.capturable:
                return f"{type(hook).__name__} changes what a step does"
        if (
            values_on_their_way(model, x.shape[0] * prepared.joint.freqs.shape[1], x.element_size())
            > self.room
        ):
            return "the picture is so large that a graph saves nothing"
        return ""

    def record(
        self,
        model: S3DiT,
        x: Tensor,
        timesteps: Tensor,
        prepared: Prepared,
        hooks: Sequence[BlockHook],
        weights: tuple[int, ...],
    ) -> Graph | None:
        own_x, own_timesteps, own = x.clone(), timesteps.clone(), copied(prepared)

        def step() -> Tensor:
            return model.step(own_x, own, model.time(own_timesteps, own_x.dtype), hooks)

        try:
            recording, out = self.capture(step)
        except RuntimeError as error:  # an operator that waits for the card, or no memory
            logging.warning("Z-Image runs without CUDA graphs: %s", str(error).splitlines()[0])
            self.failed = True
            return None
        return Graph(recording, weights, own_x, own_timesteps, own, out, weakref.ref(prepared))


class CudaCapture:
    """Records on a card; all recordings share memory, since one runs at a time."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Recording, Tensor]:
        graph = torch.cuda.CUDAGraph()
        if self.pool is None:
            self.pool = torch.cuda.graph_pool_handle()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            out = run()
        return graph, out


def layers(network: nn.Module) -> Iterator[dict[str, Any]]:
    """The attributes of each module in it.

    For what is looked at before every step: six times as fast as `modules` and `getattr`.
    """
    left = [network]
    while left:
        own = left.pop().__dict__
        yield own
        left += [module for module in own["_modules"].values() if module is not None]


def pointers(model: S3DiT) -> tuple[int, ...]:
    """Where each weight lies: a recorded step reads it from there."""
    found = (each for own in layers(model) for each in own["_parameters"].values())
    return tuple(parameter.data_ptr() for parameter in found if parameter is not None)


def values_on_their_way(model: S3DiT, tokens: int, size: int) -> int:
    """Bytes of the largest step of a block: hidden, its norm, and the two that SwiGLU multiplies."""
    return tokens * size * (2 * model.config.dim + 2 * model.config.ffn_dim)
