"""Guided steps of Base without the model: which ones follows from the sigmas alone, before the first step.

Along a run the guided velocity is a smooth function of the logarithm of noise over signal. A step that is
left out takes the line through the two latest computed velocities. The next computed step makes up for what
those lines were wrong by, seen from the parabola through the three latest. Euler adds its steps up, so that
the run goes on from where the parabola's velocities would have brought it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

SHARE = 0.6  # of the steps that are computed
LEAST = 16  # steps of a run, below which none is left out: Turbo's few are too far apart
PART = 128  # steps that are chosen from together: the time that takes grows with their third power
ENDS = 0.02  # how far pure noise and the picture are kept from the logarithm's infinities
LINE, PARABOLA = 2, 3  # points that they go through


def place(sigma: float) -> float:
    """log(noise / signal), bounded at both ends."""
    return math.log((sigma + ENDS) / (1 - sigma + ENDS))


def weights(places: Sequence[float], at: float) -> list[float]:
    """Lagrange's: what the values at `places` count in the polynomial through them, at another place."""
    return [math.prod((at - other) / (own - other) for other in places if other != own) for own in places]


def computed_steps(sigmas: Sequence[float], share: float = SHARE) -> list[int]:
    """The steps that the model computes of those between sigmas [n + 1], which fall.

    They are the first two, the last, and those between with which lines from one to the next stray least from
    a parabola over `place`, weighted by the steps' lengths: the shortest path of so many, found exactly.
    A long run is halved until its parts have no more than PART steps.
    """
    steps = len(sigmas) - 1
    count = max(3, math.ceil(share * steps))
    if count >= steps:
        return list(range(steps))
    if steps > PART:
        half = steps // 2
        late = computed_steps(sigmas[half:], share)
        return [*computed_steps(sigmas[: half + 1], share), *(half + step for step in late)]
    places = [place(sigma) for sigma in sigmas]
    lengths = [sigma - later for sigma, later in pairwise(sigmas)]
    # sums from the first step on: of lengths, and of lengths times powers of places
    sums = [
        list(accumulate((h * p**power for h, p in zip(lengths, places, strict=False)), initial=0.0))
        for power in range(3)
    ]

    def stray(a: int, b: int) -> float:
        """Of the steps between a and b, the sum of length * (place of a - place) * (place - place of b)."""
        length, first, second = (total[b] - total[a + 1] for total in sums)
        return (places[a] + places[b]) * first - second - places[a] * places[b] * length

    # cost and path to each step, of the paths with as many computed steps as there were rounds
    best: dict[int, tuple[float, list[int]]] = {1: (0.0, [0, 1])}
    for _ in range(count - 2):
        best = {
            b: min((cost + stray(a, b), [*path, b]) for a, (cost, path) in best.items() if a < b)
            for b in range(min(best) + 1, steps)
        }
    return best[steps - 1][1]


def fit(sigmas: Sequence[float]) -> bool:
    """Whether steps between these can be left out: they fall all the way and are a flow's, within 1 and 0."""
    falling = all(later < sigma for sigma, later in pairwise(sigmas))
    return falling and all(0 <= sigma <= 1 for sigma in sigmas)


class StepCache:
    """What one run keeps: make one for each run, and ask it for the velocity of each step, one by one.

    sigmas: of the run, n + 1 for n steps. kinds: what is predicted in each step, such as with guidance or
    without; nothing is carried from one kind to the next. None: the same in all steps.
    Raises ValueError for sigmas that do not fall all the way, or are no flow's.
    """

    def __init__(
        self, sigmas: Sequence[float], kinds: Sequence[Hashable] | None = None, share: float = SHARE
    ) -> None:
        if not fit(sigmas):
            raise ValueError(
                f"the step cache needs sigmas that fall from step to step, got {list(sigmas)}; a flow's lie "
                "between 1 and 0"
            )
        steps = len(sigmas) - 1
        kinds = [None] * steps if kinds is None else kinds
        starts = [i for i in range(steps) if i == 0 or kinds[i] != kinds[i - 1]]
        self._starts = set(starts)
        self.computed = {
            start + step
            for start, end in pairwise([*starts, steps])
            for step in computed_steps(sigmas[start : end + 1], share if steps >= LEAST else 1.0)
        }
        self._places = [place(sigma) for sigma in sigmas[:-1]]
        self._lengths = [later - sigma for sigma, later in pairwise(sigmas)]
        self._step = 0
        self._forget()

    def _forget(self) -> None:
        self._known: list[tuple[float, Tensor]] = []  # places and velocities that were computed
        self._guessed: list[int] = []  # steps since the last of them
        self._taken: Tensor | None = None  # the way that they went

    @property
    def report(self) -> str:
        steps = len(self._lengths)
        if len(self.computed) == steps:
            return f"Step cache: all {steps} steps computed; it leaves some out from {LEAST} steps on."
        return f"Step cache: {len(self.computed)} of {steps} steps computed."

    def velocity(self, compute: Callable[[], Tensor]) -> Tensor:
        """The guided velocity of the next step; compute: the model's. float32, where it is not that one."""
        step = self._step
        self._step += 1
        if step in self._starts:
            self._forget()
        if step not in self.computed:
            guess = self._through(LINE, {step: 1.0})
            way = self._lengths[step] * guess
            self._taken = way if self._taken is None else self._taken + way
            self._guessed.append(step)
            return guess
        velocity = compute()
        self._known = [*self._known[1 - PARABOLA :], (self._places[step], velocity.float())]
        if self._taken is None:
            return velocity
        owed = self._through(PARABOLA, {i: self._lengths[i] for i in self._guessed}) - self._taken
        self._guessed, self._taken = [], None
        return velocity + owed / self._lengths[step]

    def _through(self, points: int, steps: dict[int, float]) -> Tensor:
        """The sum over steps, each times its number, of the polynomial through the latest points."""
        known = self._known[-points:]
        places = [place for place, _ in known]
        totals = [0.0] * len(known)
        for step, factor in steps.items():
            for i, weight in enumerate(weights(places, self._places[step])):
                totals[i] += factor * weight
        return torch.stack([total * v for total, (_, v) in zip(totals, known, strict=True)]).sum(dim=0)
