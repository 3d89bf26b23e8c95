"""Two calls on one machine: paired ratios of their times with an interval, their memory, and who else worked.

A ratio is that of two calls of one round, a moment apart: what slows the machine for minutes slows both. The
interval is exact whatever the times' distribution: between two of the sorted ratios, the median lies with at
least the stated confidence.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from bench.cases import Case
from bench.peak import Peak
from bench.rows import row
from bench.timing import Call, turns

CONFIDENCE = 0.9
FOREIGN = 0.2  # of a core: with more used by others, or taken by other machines of the same hardware, a
# round is called busy
OURS = "ours"


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Where the median of what the values were drawn from lies; None for too few values.

    Of n values the median is below the k-th smallest with the chance that fewer than k of n coins fall heads.
    """
    n, ordered, outside, k = len(values), sorted(values), 0.0, 0
    while k < n / 2:
        outside += 2 * math.comb(n, k) / 2**n
        if outside > 1 - confidence:
            break
        k += 1
    return (ordered[k - 1], ordered[-k]) if k else None


class Others:
    """How much of the cores others than this process use, from one call to the next."""

    STAT, CORES = Path("/proc/stat"), "cpu "
    IDLE = (3, 4)  # fields: idle, waiting for a disk

    def __init__(self) -> None:
        self.last = self._now()

    def _now(self) -> tuple[float, float, float]:
        """Seconds: of the clock, of all cores at work, of this process at work."""
        used = 0.0
        if self.STAT.exists():
            fields = [int(value) for value in self.STAT.read_text().split("\n")[0].split()[1:9]]
            used = sum(v for i, v in enumerate(fields) if i not in self.IDLE) / os.sysconf("SC_CLK_TCK")
        mine = os.times()
        return time.monotonic(), used, mine.user + mine.system

    def cores(self) -> float:
        """Cores that others kept at work; 0 where the system does not tell."""
        before, self.last = self.last, self._now()
        clock, used, mine = (b - a for a, b in zip(before, self.last, strict=True))
        return max(0.0, used - mine) / clock if clock > 0 else 0.0


@dataclass(frozen=True)
class Measured:
    """times: seconds of each call in every round; peaks: bytes of each beside weights; busy: rounds so."""

    times: dict[str, list[float]]
    peaks: dict[str, int]
    others: list[float] = field(default_factory=list)  # cores in each round

    @property
    def busy(self) -> int:
        return sum(cores > FOREIGN for cores in self.others)


def measure(calls: dict[str, Call], device: str, rounds: int, until: float = math.inf) -> Measured:
    """All calls once for their memory, which warms them up, and then in turns."""
    peaks = {name: peak(call, device) for name, call in calls.items()}
    others, found = Others(), []
    times = turns(calls, device, rounds, until, lambda: found.append(others.cores()))
    return Measured(times, peaks, found)


def peak(call: Call, device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with Peak() as tracker:
        call()
    return tracker.peak


def rows(case: Case, device: str, found: Measured, bars: dict[str, str], ours: str = OURS) -> Iterator[dict]:
    """The best time of each call, and ours against each other one.

    bars: of paired medians by peer. A bar for what was not run stays open. ours: the name of our call.
    """
    label = f"{device}, {case.called()}"
    times, rounds = found.times, len(found.times[ours])
    for name, seconds in times.items():
        yield row(f"{label}: {name}", 1000 * min(seconds), "ms, best")
    for name in dict.fromkeys([*times, *bars]):
        if name == ours:
            continue
        if name not in times:
            yield row(f"{label}: {ours} / {name}", None, "x, paired median", bars[name], name)
            continue
        ratios = [a / b for a, b in zip(times[ours], times[name], strict=True)]
        low, high = interval(ratios) or (None, None)
        yield {
            **row(
                f"{label}: {ours} / {name}",
                statistics.median(ratios),
                "x, paired median",
                bars.get(name),
                name,
            ),
            **{"case": asdict(case), "peer": name, "low": low, "high": high},
            **{"ours_ms": 1000 * min(times[ours]), "peer_ms": 1000 * min(times[name])},
            **{"ours_mib": found.peaks[ours] / 2**20, "peer_mib": found.peaks[name] / 2**20},
            **{"rounds": rounds, "busy": found.busy, "others": max(found.others, default=0.0)},
        }
