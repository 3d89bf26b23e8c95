"""Other ways to leave steps out, each from its formula; EasyCache is the host's own code.

All see a guided run of which both sides go through the model together: `velocity(x, sigma, hooks)` of
[positive, negative] latents. `forwards` is what a run would cost on the full-size model, in forwards of all
its blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from zimage_core.model.hooks import BlockCall, BlockHook
from zimage_core.model.sequence import Span

Velocity = Callable[..., Tensor]  # x [2 B, C, H, W], sigma, hooks -> the same shape


class EasyCache:
    """The host's own, at its node's settings: a step is left out while the change to come is small.

    It looks at every cell of latents as small as these, where the node takes every eighth.
    """

    START, END = 0.15, 0.95

    def __init__(self, threshold: float, velocity: Velocity, channels: int, sampling: Any) -> None:
        from comfy_extras import nodes_easycache as host

        self.host, self.velocity, self.forwards = host, velocity, 0
        holder = host.EasyCacheHolder(
            threshold, self.START, self.END, subsample_factor=1, offload_cache_diff=False,
            output_channels=channels,
        )  # fmt: skip
        self.options = {"easycache": holder.clone().prepare_timesteps(sampling), "uuids": [0, 1]}

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        options = {**self.options, "sigmas": torch.full((1,), sigma)}

        def whole(x: Tensor, **_: Any) -> Tensor:
            self.forwards += 1
            return self.velocity(x, sigma)

        def step(_: dict) -> Tensor:  # it adds to what it is given
            return self.host.easycache_forward_wrapper(whole, x.clone(), transformer_options=options)

        return self.host.easycache_calc_cond_batch_wrapper(step, {"transformer_options": options})


class DBCache(BlockHook):
    """cache-dit's: the first block always runs; in place of the others goes the residual that they last had.

    They run when the first block's residual has changed by more than `threshold` of its mean since they last
    did. taylor: their residual goes on along its latest slope (TaylorSeer of order 1).
    """

    # Of the picture's blocks in a step left out: two of the noise refiner and the first of 30 layers.
    STILL_RUN = 3 / 32
    WARM_UP = 4  # steps computed first, as in cache-dit's example for Z-Image

    def __init__(self, threshold: float, velocity: Velocity, taylor: bool = False) -> None:
        self.threshold, self.velocity, self.taylor = threshold, velocity, taylor
        self.step, self.computed = -1, 0
        self.first: Tensor | None = None  # residual of the first block when the others last ran
        self.rest: list[tuple[int, Tensor]] = []  # steps and residuals of the others, the latest two

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        return self.velocity(x, sigma, [self])

    @property
    def forwards(self) -> float:
        return self.computed + (self.step + 1 - self.computed) * self.STILL_RUN

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        if stack == "layers":
            self.step += 1
        return hidden, span

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        if stack != "layers":
            return call(hidden, span)
        if index:
            return hidden if self.skips else call(hidden, span)
        self.reached = call(hidden, span)
        change = self.reached - hidden
        self.skips = self.step >= self.WARM_UP and self._alike(change)
        if not self.skips:
            self.first = change
            self.computed += 1
        return self.reached

    def _alike(self, change: Tensor) -> bool:
        return float((self.first - change).abs().mean() / self.first.abs().mean()) < self.threshold

    def leave(self, stack: str, hidden: Tensor) -> Tensor:
        if stack != "layers":
            return hidden
        if not self.skips:
            self.rest = [*self.rest[-1:], (self.step, hidden - self.reached)]
            return hidden
        latest, rest = self.rest[-1]
        if self.taylor:
            before, earlier = self.rest[0]
            rest = rest + (rest - earlier) * ((self.step - latest) / (latest - before))
        return hidden + rest


def mean_cache_steps(sigmas: Sequence[float], run: Sequence[Tensor], count: int, power: float) -> list[int]:
    """MeanCache's schedule: the path of `count` steps with mean velocities nearest to an uncached run's.

    run: guided velocities of that run, one a step. power: large errors count more, the larger it is.
    """
    steps = len(sigmas) - 1

    @functools.cache
    def missed(before: int, a: int, b: int) -> float:
        """By the steps from a to b, with the slope between before and a."""
        if b == a + 1:
            return 0.0
        way = sum((sigmas[i + 1] - sigmas[i]) * run[i] for i in range(a, b))
        guess = mean_velocity(sigmas, a, b, run[a], (before, run[before]))
        return float(((sigmas[b] - sigmas[a]) * guess - way).norm()) ** power

    # by the latest two steps of a path: its cost, and its steps
    best = {(0, 1): (0.0, [0, 1])}
    for _ in range(count - 2):
        longer: dict[tuple[int, int], tuple[float, list[int]]] = {}
        for (before, a), (cost, path) in best.items():
            for b in range(a + 1, steps):
                total = cost + missed(before, a, b)
                if (a, b) not in longer or total < longer[a, b][0]:
                    longer[a, b] = total, [*path, b]
        best = longer
    return min((cost + missed(*last, steps), path) for last, (cost, path) in best.items())[1]


def mean_velocity(
    sigmas: Sequence[float], a: int, b: int, velocity: Tensor, before: tuple[int, Tensor] | None
) -> Tensor:
    """MeanCache's average over steps a to b: v + (mean sigma - sigma of a) * dv/dsigma.

    dv/dsigma, the Jacobian-vector product along the path, is the difference from the computed step before.
    The mean sigma is that of the Euler steps within, so that a velocity on a line is met exactly.
    """
    if before is None or b == a + 1:
        return velocity
    step, earlier = before
    slope = (velocity - earlier) / (sigmas[a] - sigmas[step])
    lengths = [later - sigma for sigma, later in pairwise(sigmas[a : b + 1])]
    mean = sum(h * s for h, s in zip(lengths, sigmas[a:b], strict=True)) / sum(lengths)
    return velocity + (mean - sigmas[a]) * slope
