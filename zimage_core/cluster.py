"""Work over a Ray cluster: a worker for each GPU or group of CPUs, with an item in work and the next waiting.

A worker that is lost is replaced and its items are done again. Results come back to the process that started
the run, in the order in which they are done.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

log = logging.getLogger(__name__)

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers of each run
IN_FLIGHT = 2  # items that a worker has
LOSSES = 3  # of workers, one after the other or by one item, after which it is tried no more
CONNECT = 5.0  # seconds
SETTINGS = b"\4"  # type of the frame of HTTP/2 with which both sides of gRPC begin
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + SETTINGS + bytes(5)
START = 20 * 60.0  # seconds after which a worker that does not start is given up
TICK = 1.0
SAMPLES, SAMPLE = 16, 4096  # of a file, and bytes of each
TOKEN = "Where it was started with a token: RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or its file in ~/.ray"
NEEDED = "--ray needs the Python package ray on all machines: pip install ray"

Item = TypeVar("Item")
Result = TypeVar("Result")


class ClusterError(RuntimeError):
    """A cluster that cannot be used, or workers that cannot go on; the message says what to do."""


class Task(Protocol[Item, Result]):
    """What workers do with each item. It is pickled to them, and so are items and results.

    silence: seconds after which a worker that has an item and says nothing is given up.
    """

    silence: float

    def versions(self) -> dict[str, str]:
        """What has to be the same on all machines for the same results."""

    def begin(self, device: str) -> Callable[[Item], Result]:
        """Called once on each worker, as with a model that is loaded; what it raises ends the run."""

    def parts(self, item: Item) -> Sequence[Item]:
        """Smaller ones, into which it is cut when a worker was lost with it; none if it is not cut."""

    def given_up(self, item: Item, why: str) -> Result:
        """The result of one with which LOSSES workers were lost."""


def installed(*packages: str) -> dict[str, str]:
    """Python's version and those of packages."""
    found = {"Python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def named(places: Iterable[Path | None]) -> str:
    """A name of files and folders on any machine: others differ in a name, a size, or some bytes."""
    facts = []
    for place in places:
        found = sorted(place.rglob("*")) if place and place.is_dir() else [place]
        facts.append([(f.name, f.stat().st_size, sampled(f)) for f in found if f and f.is_file()])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def sampled(path: Path) -> str:
    """A hash of some of a file's bytes: the weights of Turbo and of Base have the same names and sizes."""
    size, found = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as file:
        for at in range(SAMPLES):
            file.seek(max(size - SAMPLE, 0) * at // (SAMPLES - 1))
            found.update(file.read(SAMPLE))
    return found.hexdigest()


class Replica:
    """A worker in a process of its own."""

    def start(self, task: Task, device: str, threads: int) -> tuple[str, int, dict[str, str]]:
        """Gives the machine, the process, and what runs there."""
        if device == "cpu":
            torch.set_num_threads(threads)
        here = socket.gethostname()
        try:
            self.done = task.begin(device)
            return here, os.getpid(), task.versions()
        except Exception as error:
            raise RuntimeError(f"a worker on {here} cannot start: {error}") from None

    def work(self, item: Any) -> Any:
        return self.done(item)


@dataclass(eq=False)
class Entry:
    """An item, and how many workers were lost with it."""

    item: Any
    lost: int = 0


@dataclass(eq=False)
class Seat:
    """A worker as it is seen from here. started: what `start` gives; None when it did."""

    actor: Any
    started: Any
    work: deque[tuple[Any, Entry]] = field(default_factory=deque)
    heard: float = field(default_factory=time.monotonic)

    @property
    def waited_for(self) -> Any:
        return self.started or (self.work[0][0] if self.work else None)


@dataclass(frozen=True)
class Room:
    """What there is room for in a cluster: so many workers, each with a GPU or with `threads` CPUs."""

    device: str
    count: int
    threads: int

    @property
    def needs(self) -> dict[str, int]:
        return {"num_cpus": self.threads} if self.device == "cpu" else {"num_cpus": 1, "num_gpus": 1}


class Cluster:
    """Raises ClusterError where there is no Ray, or no cluster at the address.

    address: of a cluster, HOST:PORT or "auto"; None: one is started on this machine, and ends with the run.
    """

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise ClusterError(NEEDED) from None
        self.ray = ray
        joins = {"runtime_env": {"py_modules": [str(Path(__file__).resolve().parent)]}} if address else {}
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
            raise ClusterError(
                f"no Ray cluster lets us in at {address or 'this machine'}: {error}. {TOKEN}"
            ) from None
        finally:
            signal.signal(signal.SIGTERM, ends)

    def room(self, workers: int | None, device: str | None = None, threads: int | None = None) -> Room:
        """Raises ClusterError where that is more than the cluster has.

        workers: None: as many as there are GPUs, or groups of CPUs. device: None: GPUs where there are any.
        threads: of a worker on CPUs; None: as many as PyTorch has here.
        """
        if workers is not None and workers < 1:
            raise ClusterError(f"--workers {workers}: expected 1 or more")
        found = self.ray.cluster_resources()
        gpus, cpus = int(found.get("GPU", 0)), int(found.get("CPU", 0))
        device, threads = device or ("cuda" if gpus else "cpu"), threads or torch.get_num_threads()
        most = cpus // threads if device == "cpu" else gpus
        if (workers or 1) > most:
            has, lower = f"{gpus} GPUs", ", or --device cpu"
            if device == "cpu":
                has = f"{cpus} CPUs for workers of {threads} threads"
                lower = ", or a lower OMP_NUM_THREADS" if threads > 1 else ""
            raise ClusterError(
                f"{workers or 1} workers are too many for a cluster of {has}: fewer --workers{lower}"
            )
        return Room(device, workers or most, threads)

    def close(self) -> None:
        self.ray.shutdown()

    def results(
        self, task: Task[Item, Result], items: Iterable[Item], room: Room
    ) -> Iterator[tuple[Item, Result]]:
        """Each item, or the parts that it was cut into, and its result. Raises ClusterError.

        Items are asked for when a worker has room for them.
        """
        return Run(self.ray, task, items, room).results()


def reach(address: str) -> None:
    """Raises ClusterError where no Ray listens: Ray itself would try for hours, or end this process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f'--ray {address}: expected HOST:PORT of a cluster, or "auto"')
    try:
        with socket.create_connection((host, int(port)), CONNECT) as found:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            found.sendall(PREFACE)
            answer = found.recv(9, socket.MSG_WAITALL)
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error}): start one by `ray start --head --port {port}`"
        ) from None
    if answer[3:4] != SETTINGS:
        raise ClusterError(f"what answers at {address} is no Ray: give the port of `ray start --head`")


class Run:
    """Hands items to workers, and takes their results."""

    def __init__(self, ray: Any, task: Task, items: Iterable[Any], room: Room) -> None:
        self.ray, self.task, self.room = ray, task, room
        self.rest = (Entry(item) for item in items)
        self.todo = deque(itertools.islice(self.rest, room.count))  # those that come next
        self.own = task.versions()
        self.seats: list[Seat] = []
        self.lost = 0  # workers since the last result

    def results(self) -> Iterator[tuple[Any, Any]]:
        try:
            self.seats += [self._seat() for _ in self.todo]
            while self._more() or any(seat.work for seat in self.seats):
                self._hand_out()
                waited = {seat.waited_for: seat for seat in self.seats if seat.waited_for is not None}
                ready, _ = self.ray.wait([*waited], num_returns=1, timeout=TICK)
                for found in ready:
                    yield from self._taken(waited[found], found)
                for seat in [seat for seat in self.seats if self._silent(seat)]:
                    yield from self._replaced(seat, "it has said nothing for too long")
        finally:
            if self.ray.is_initialized():  # and not closed before
                for seat in self.seats:
                    self.ray.kill(seat.actor)

    def _seat(self) -> Seat:
        options = {"max_restarts": 0, "max_task_retries": 0, **self.room.needs}
        actor = self.ray.remote(Replica).options(**options).remote()
        return Seat(actor, actor.start.remote(self.task, self.room.device, self.room.threads))

    def _more(self) -> bool:
        if not self.todo:
            self.todo.extend(itertools.islice(self.rest, 1))
        return bool(self.todo)

    def _hand_out(self) -> None:
        """One to each before anyone gets a second."""
        for count in range(IN_FLIGHT):
            for seat in self.seats:
                if seat.started is None and len(seat.work) == count and self._more():
                    entry = self.todo.popleft()
                    if not seat.work:
                        seat.heard = time.monotonic()
                    seat.work.append((seat.actor.work.remote(entry.item), entry))

    def _taken(self, seat: Seat, found: Any) -> Iterator[tuple[Any, Any]]:
        try:
            value = self.ray.get(found)
        except self.ray.exceptions.RayTaskError as error:
            raise ClusterError(str(error.cause)) from None
        except self.ray.exceptions.RayError as error:  # the process or its machine is gone
            yield from self._replaced(seat, str(error).strip().split("\n")[0])
            return
        seat.heard = time.monotonic()
        if found is seat.started:
            self._check(*value)
            seat.started = None
        else:
            _, entry = seat.work.popleft()
            self.lost = 0
            yield entry.item, value

    def _check(self, host: str, process: int, found: dict[str, str]) -> None:
        for name, own in self.own.items():
            if found[name] != own:
                raise ClusterError(
                    f"{name} of {host} is {found[name]}, here it is {own}: results would differ. Bring all "
                    "machines to the same"
                )
        log.info("a worker on %s, process %d", host, process)

    def _silent(self, seat: Seat) -> bool:
        limit = START if seat.started is not None else self.task.silence if seat.work else float("inf")
        return time.monotonic() - seat.heard > limit

    def _replaced(self, seat: Seat, why: str) -> Iterator[tuple[Any, Any]]:
        """A lost worker's items are the next ones; the one in work is cut, or given up after some losses."""
        log.warning("a worker is lost and replaced: %s", why)
        self.ray.kill(seat.actor)
        self.lost += 1
        if self.lost >= LOSSES + len(self.seats):
            raise ClusterError(f"workers are lost one after the other. The last one: {why}")
        work = [entry for _, entry in seat.work]
        if work:
            entry, *rest = work
            entry.lost += 1
            if entry.lost >= LOSSES:
                yield entry.item, self.task.given_up(entry.item, why)
                work = rest
            elif parts := self.task.parts(entry.item):
                work = [*(Entry(part, entry.lost) for part in parts), *rest]
        self.todo.extendleft(reversed(work))
        self.seats[self.seats.index(seat)] = self._seat()
