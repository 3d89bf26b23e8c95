"""Batches over a Ray cluster: a worker for each GPU, each with a batch in work and the next one waiting.

A worker that is lost is replaced and its batches are drawn again. Pictures come back to the process that
started the run, which alone writes.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL
import torch

from .batches import Batch
from .worker import Drawn, Job, Worker

log = logging.getLogger("zimage_core.generate")

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers of each run
IN_FLIGHT = 2  # batches that a worker has
LOSSES = 3  # of workers, one after the other or by one batch, after which it is tried no more
CONNECT = 5.0  # seconds
START, BATCH = 20 * 60.0, 2 * 60 * 60.0  # seconds after which a worker that says nothing is given up
TICK = 1.0
TOKEN = "Where it was started with a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or its file in ~/.ray"
NEEDED = "--ray needs the Python package ray on all machines: pip install ray"


def versions(job: Job) -> dict[str, str]:
    """What has to be the same for the same pictures."""
    return {
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "Pillow": PIL.__version__,
        "the model's files": job.model,
    }


class Replica:
    """A worker in a process of its own."""

    def start(self, job: Job, threads: int) -> tuple[str, int, dict[str, str]]:
        """Loads the model. Gives the machine, the process, and what runs there."""
        if job.device == "cpu":
            torch.set_num_threads(threads)
        here = socket.gethostname()
        try:
            self.worker = Worker(job)
            return here, os.getpid(), versions(job)
        except torch.OutOfMemoryError as error:
            raise RuntimeError(f"the GPU of {here} is too small, give --vram: {error}") from None
        except Exception as error:
            raise RuntimeError(f"a worker on {here} cannot start: {error}") from None

    def draw(self, batch: Batch) -> Drawn:
        return self.worker.draw(batch)


@dataclass(eq=False)
class Seat:
    """A worker as it is seen from here. started: what `start` gives; None when it did."""

    actor: Any
    started: Any
    work: deque[tuple[Any, int, Batch]] = field(default_factory=deque)
    heard: float = field(default_factory=time.monotonic)

    @property
    def waited_for(self) -> Any:
        return self.started or (self.work[0][0] if self.work else None)


class Cluster:
    """Raises RuntimeError where there is no Ray, no cluster at the address, or too few GPUs in it.

    address: of a cluster, HOST:PORT or "auto"; None: one is started on this machine, and ends with the run.
    workers: how many; None: as many as there are GPUs, or groups of CPUs.
    device: None: GPUs where there are any.
    """

    def __init__(self, address: str | None, workers: int | None, device: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise RuntimeError(NEEDED) from None
        self.ray, self.threads = ray, torch.get_num_threads()
        joins = {"runtime_env": {"py_modules": [str(Path(__file__).resolve().parents[1])]}} if address else {}
        if address not in (None, "auto"):
            reach(address)
        ends = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address or "local",
                log_to_driver=False,
                logging_level="ERROR",
                **joins or {"include_dashboard": False},
            )
        except (ConnectionError, SystemExit, ray.exceptions.RaySystemError) as error:
            raise RuntimeError(
                f"no Ray cluster lets us in at {address or 'this machine'}: {error}. {TOKEN}"
            ) from None
        finally:
            signal.signal(signal.SIGTERM, ends)
        try:
            self.device, self.count = self._room(ray.cluster_resources(), workers, device)
        except BaseException:
            ray.shutdown()
            raise

    def _room(self, found: dict[str, float], workers: int | None, device: str | None) -> tuple[str, int]:
        gpus, cpus = int(found.get("GPU", 0)), int(found.get("CPU", 0))
        device = device or ("cuda" if gpus else "cpu")
        most = cpus // self.threads if device == "cpu" else gpus
        if (workers or 1) > most:
            has, lower = f"{gpus} GPUs", "--device cpu"
            if device == "cpu":
                has, lower = f"{cpus} CPUs for workers of {self.threads} threads", "a lower OMP_NUM_THREADS"
            raise RuntimeError(
                f"{workers or 1} workers are too many for a cluster of {has}: fewer --workers, or {lower}"
            )
        return device, workers or most

    def close(self) -> None:
        self.ray.shutdown()

    def draw(self, job: Job, todo: Iterable[tuple[int, Batch]]) -> Iterator[tuple[int, Batch, Drawn]]:
        """Number, requests and pictures of each batch, in the order in which they are done."""
        return Run(self, job, todo).results()

    def seat(self, job: Job) -> Seat:
        needs = {"num_cpus": self.threads} if self.device == "cpu" else {"num_cpus": 1, "num_gpus": 1}
        actor = self.ray.remote(Replica).options(max_restarts=0, max_task_retries=0, **needs).remote()
        return Seat(actor, actor.start.remote(job, self.threads))


def reach(address: str) -> None:
    """Raises RuntimeError where nobody listens: Ray itself would end this process, after minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise RuntimeError(f'--ray {address}: expected HOST:PORT of a cluster, or "auto"')
    try:
        socket.create_connection((host, int(port)), CONNECT).close()
    except (OSError, OverflowError) as error:
        raise RuntimeError(
            f"no Ray cluster answers at {address} ({error}): start one by `ray start --head --port {port}`"
        ) from None


class Run:
    """Hands batches to workers, and takes what they made."""

    def __init__(self, cluster: Cluster, job: Job, todo: Iterable[tuple[int, Batch]]) -> None:
        self.cluster, self.job, self.ray = cluster, job, cluster.ray
        self.todo = deque(todo)
        self.own = versions(job)
        self.seats: list[Seat] = []
        self.lost, self.killed = 0, Counter()  # workers since the last batch, and by each batch

    def results(self) -> Iterator[tuple[int, Batch, Drawn]]:
        self.seats = [self.cluster.seat(self.job) for _ in range(min(self.cluster.count, len(self.todo)))]
        while self.todo or any(seat.work for seat in self.seats):
            self._hand_out()
            waited = {seat.waited_for: seat for seat in self.seats if seat.waited_for is not None}
            ready, _ = self.ray.wait([*waited], num_returns=1, timeout=TICK)
            for found in ready:
                yield from self._taken(waited[found], found)
            for seat in [seat for seat in self.seats if self._silent(seat)]:
                yield from self._replaced(seat, "it has said nothing for too long")

    def _hand_out(self) -> None:
        """One to each before anyone gets a second."""
        for count in range(IN_FLIGHT):
            for seat in self.seats:
                if self.todo and seat.started is None and len(seat.work) == count:
                    number, batch = self.todo.popleft()
                    if not seat.work:
                        seat.heard = time.monotonic()
                    seat.work.append((seat.actor.draw.remote(batch), number, batch))

    def _taken(self, seat: Seat, found: Any) -> Iterator[tuple[int, Batch, Drawn]]:
        try:
            value = self.ray.get(found)
        except self.ray.exceptions.RayTaskError as error:
            raise RuntimeError(str(error.cause)) from None
        except self.ray.exceptions.RayError as error:  # the process or its machine is gone
            yield from self._replaced(seat, str(error).strip().split("\n")[0])
            return
        seat.heard = time.monotonic()
        if found is seat.started:
            self._check(*value)
            seat.started = None
        else:
            _, number, batch = seat.work.popleft()
            self.lost = 0
            yield number, batch, value

    def _check(self, host: str, process: int, found: dict[str, str]) -> None:
        for name, own in self.own.items():
            if found[name] != own:
                raise RuntimeError(
                    f"{name} of {host} is {found[name]}, here it is {own}: pictures would differ. Bring all "
                    "machines to the same"
                )
        log.info("a worker on %s, process %d", host, process)

    def _silent(self, seat: Seat) -> bool:
        limit = START if seat.started is not None else BATCH if seat.work else float("inf")
        return time.monotonic() - seat.heard > limit

    def _replaced(self, seat: Seat, why: str) -> Iterator[tuple[int, Batch, Drawn]]:
        """A lost worker's batches are the next ones; one that was in work too often is given up."""
        log.warning("a worker is lost and replaced: %s", why)
        self.ray.kill(seat.actor)
        self.lost += 1
        if self.lost >= LOSSES + len(self.seats):
            raise RuntimeError(f"workers are lost one after the other. The last one: {why}")
        work = [(number, batch) for _, number, batch in seat.work]
        if work:
            number, batch = work[0]
            self.killed[number] += 1
            if self.killed[number] >= LOSSES:
                yield number, batch, Drawn(again=f"{LOSSES} workers were lost while they drew it: {why}")
                work = work[1:]
        self.todo.extendleft(reversed(work))
        self.seats[self.seats.index(seat)] = self.cluster.seat(self.job)
