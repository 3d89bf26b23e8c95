"""Time of calls on a card or a CPU, one after the other and in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]
LEAST = 3  # rounds, however little time is left


def clock(device: str, call: Call) -> float:
    """Seconds of one call."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def turns(
    calls: dict[str, Call],
    device: str,
    rounds: int,
    until: float = math.inf,
    after: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each call in every round. A round runs all, in an order that turns from round to round.

    until: a time of time.monotonic after which no further round begins. after: called after each round.
    """
    names, times = list(calls), {name: [] for name in calls}
    for i in range(rounds):
        if i >= LEAST and time.monotonic() > until:
            break
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(clock(device, calls[name]))
        after()
    return times
