"""Items on workers that die, fall silent or differ: nothing lost, nothing twice, no endless try.

Ray's calls are answered in this process here; test_generate_ray and test_training_data_ray use Ray itself.
"""

from __future__ import annotations

import itertools
import pickle
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from tests.core.random_models import seeds
from zimage_core import cluster
from zimage_core.cluster import IN_FLIGHT, LOSSES, ClusterError, Room, Run

Chunk = tuple[int, ...]


class Death(Exception):
    """Ends the worker's process."""


class Silence(BaseException):
    """Nothing is heard of the worker any more: no error is either."""


class RayError(Exception):
    pass


class RayTaskError(RayError):
    @property
    def cause(self) -> Exception:
        return self.__cause__


@dataclass(eq=False)
class Answer:
    value: bytes = b""
    error: Exception | None = None
    is_ready: bool = True


class Actor:
    """Does each call at once; its answers are found later."""

    def __init__(self, made: Any) -> None:
        self.made, self.is_dead = made, False

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *given: self.call(name, pickle.dumps(given)))

    def call(self, name: str, given: bytes) -> Answer:
        found = Answer()
        try:
            if self.is_dead:
                raise Death
            found.value = pickle.dumps(getattr(self.made, name)(*pickle.loads(given)))
        except Death:
            self.is_dead, found.error = True, RayError("the worker died\nat once")
        except Silence:
            found.is_ready = False
        except Exception as error:
            found.error = RayTaskError()
            found.error.__cause__ = error
        return found


@dataclass
class Ray:
    """Answers come in an order of its own."""

    dice: random.Random
    actors: list[Actor] = field(default_factory=list)
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def remote(self, kind: type) -> Any:
        def made() -> Actor:
            self.actors.append(Actor(kind()))
            return self.actors[-1]

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=made))

    def wait(self, refs: Sequence[Answer], num_returns: int, timeout: float) -> tuple[list, list]:
        ready = [ref for ref in refs if ref.is_ready]
        if not ready:
            time.sleep(0.01)
        return ([self.dice.choice(ready)] if ready else []), []

    def get(self, ref: Answer) -> Any:
        if ref.error is not None:
            raise ref.error
        return pickle.loads(ref.value)

    def kill(self, actor: Actor) -> None:
        actor.is_dead = True

    def is_initialized(self) -> bool:
        return True

    @property
    def alive(self) -> int:
        return sum(not actor.is_dead for actor in self.actors)


@dataclass
class Doubling:
    """Chunks of numbers -> twice each. happens: what a number does to its worker."""

    silence: float = 30.0
    version: str = "1"

    happens: ClassVar[Callable[[int], None]] = lambda number: None

    def versions(self) -> dict[str, str]:
        return {"numbers": self.version}

    def begin(self, device: str) -> Callable[[Chunk], list[int]]:
        def done(chunk: Chunk) -> list[int]:
            for number in chunk:
                type(self).happens(number)
            return [2 * number for number in chunk]

        return done

    def parts(self, item: Chunk) -> Sequence[Chunk]:
        return [(number,) for number in item] if len(item) > 1 else []

    def given_up(self, item: Chunk, why: str) -> str:
        return why


def run(ray: Ray, task: Doubling, chunks: Sequence[Chunk] | Iterator[Chunk], workers: int = 2) -> dict:
    """Number -> what came of it; each is there once."""
    found: dict[int, Any] = {}
    for chunk, result in Run(ray, task, chunks, Room("cpu", workers, 1)).results():
        assert not found.keys() & set(chunk)
        found.update(zip(chunk, [result] * len(chunk) if isinstance(result, str) else result, strict=True))
    assert ray.alive == 0
    return found


CHUNKS = [tuple(range(start, start + 5)) for start in range(0, 50, 5)]


@pytest.mark.parametrize("seed", seeds(5))
def test_workers_that_die_now_and_then_lose_nothing(seed: int, monkeypatch) -> None:
    dice, calls = random.Random(seed), Counter()

    def happens(number: int) -> None:
        calls[number] += 1
        if number % 7 == 0 and calls[number] == 1:
            raise Death

    monkeypatch.setattr(Doubling, "happens", happens)
    assert run(Ray(dice), Doubling(), CHUNKS) == {number: 2 * number for number in range(50)}


@pytest.mark.parametrize("workers", [1, 3])
def test_of_a_chunk_that_kills_its_workers_one_number_is_given_up(workers: int, monkeypatch) -> None:
    tried = Counter()

    def happens(number: int) -> None:
        tried[number] += 1
        if number in (15, 38):
            raise Death

    monkeypatch.setattr(Doubling, "happens", happens)
    found = run(Ray(random.Random(0)), Doubling(), CHUNKS, workers)
    assert {number: found.pop(number) for number in (15, 38)} == dict.fromkeys((15, 38), "the worker died")
    assert found == {number: 2 * number for number in range(50) if number not in (15, 38)}
    assert tried[15] == tried[38] == LOSSES


def test_workers_that_all_die_end_the_run(monkeypatch) -> None:
    def happens(number: int) -> None:
        raise Death

    monkeypatch.setattr(Doubling, "happens", happens)
    ray = Ray(random.Random(0))
    with pytest.raises(ClusterError, match="one after the other. The last one: the worker died"):
        run(ray, Doubling(), CHUNKS)
    assert ray.alive == 0 and len(ray.actors) < 10


def test_a_worker_that_falls_silent_is_replaced(monkeypatch) -> None:
    silent = [12]

    def happens(number: int) -> None:
        if number in silent:
            silent.remove(number)
            raise Silence

    monkeypatch.setattr(Doubling, "happens", happens)
    ray = Ray(random.Random(0))
    assert run(ray, Doubling(silence=0.1), CHUNKS, 1) == {number: 2 * number for number in range(50)}
    assert len(ray.actors) == 2


class Slow(Doubling):
    """Workers that do not start, but for those from the second on."""

    begun: ClassVar[Iterator[int]]

    def begin(self, device: str) -> Callable[[Chunk], list[int]]:
        if next(self.begun) < 1:
            raise Silence
        return super().begin(device)


@pytest.mark.parametrize("first", [0, -1000])
def test_a_worker_that_does_not_start_is_replaced_a_few_times(first: int, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "START", 0.05)
    monkeypatch.setattr(Slow, "begun", itertools.count(first), raising=False)
    ray = Ray(random.Random(0))
    if first == 0:
        assert run(ray, Slow(), CHUNKS, 1) == {number: 2 * number for number in range(50)}
        assert len(ray.actors) == 2
        return
    with pytest.raises(ClusterError, match="one after the other. The last one: it has said nothing for too"):
        run(ray, Slow(), CHUNKS, 2)
    assert ray.alive == 0 and len(ray.actors) <= LOSSES + 4


@pytest.mark.parametrize(
    ("says", "said"), [(None, "no Ray cluster answers"), (b"HTTP/1.1 400 Bad Request\r\n", "is no Ray")]
)
def test_what_listens_at_the_address_and_is_no_ray(says: bytes | None, said: str, monkeypatch) -> None:
    """Ray itself would try again for more than ten minutes."""
    monkeypatch.setattr(cluster, "CONNECT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            caller, _ = server.accept()
            with caller:
                caller.recv(100)
                caller.sendall(says)

        if says is not None:
            threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ClusterError, match=said):
            cluster.reach(f"127.0.0.1:{server.getsockname()[1]}")


def test_another_version_and_an_error_end_the_run(monkeypatch) -> None:
    class Other(Doubling):
        def __reduce__(self) -> tuple:
            return Doubling, (self.silence, "2")

    with pytest.raises(ClusterError, match=r"numbers of \S+ is 2, here it is 1"):
        run(Ray(random.Random(0)), Other(), CHUNKS)

    def happens(number: int) -> None:
        raise ValueError("no number")

    monkeypatch.setattr(Doubling, "happens", happens)
    with pytest.raises(ClusterError, match="no number"):
        run(Ray(random.Random(0)), Doubling(), CHUNKS)


def test_no_more_is_asked_for_than_workers_have_in_hand() -> None:
    asked, done, most = 0, 0, 0

    def chunks() -> Iterator[Chunk]:
        nonlocal asked
        for number in range(200):
            asked += 1
            yield (number,)

    ray = Ray(random.Random(0))
    results = Run(ray, Doubling(), chunks(), Room("cpu", 3, 1)).results()
    for _ in results:
        most, done = max(most, asked - done), done + 1
        if done == 100:
            break
    assert most <= 3 * IN_FLIGHT + 1
    results.close()
    assert ray.alive == 0
