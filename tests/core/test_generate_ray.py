"""Pictures over a Ray cluster of two workers, which start, die and are replaced as real ones do."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.core.ray_head import START, Driver, started
from tests.core.test_generate_many import NANO, SMALL, file_of, results, run
from zimage_core.cluster import Cluster
from zimage_core.generate.__main__ import job_of, parser
from zimage_core.generate.batches import cut
from zimage_core.generate.over_cluster import Drawing
from zimage_core.generate.requests import read
from zimage_core.generate.worker import Drawn

pytestmark = pytest.mark.long
WORKER = re.compile(r"a worker on \S+, process (\d+)")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("ray")) as found:
        yield found


def driven(requests: Path, out: Path, address: str) -> Driver:
    options = ["--model", NANO, "--device", "cpu", "--ray", address, "--workers", "2"]
    log = out.with_suffix(f".{time.monotonic_ns()}.log")
    return Driver(log, "zimage_core.generate", requests, out, *options)


def done(out: Path) -> int:
    path = out / "manifest.jsonl"
    return path.read_bytes().count(b'"file"') if path.exists() else 0


def test_workers_and_the_driver_are_killed_and_nothing_is_lost_or_drawn_twice(
    address: str, tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    lines = [
        {"prompt": f"a {'very ' * (n % 3 * 20)}red apple", **SMALL, "steps": 1 + n % 2} for n in range(200)
    ]
    requests, out = file_of(tmp_path, lines), tmp_path / "out"
    driver = driven(requests, out, address)
    for kill in (1, 2):
        before = done(out)
        driver.wait_for(lambda: done(out) >= before + 12)  # noqa: B023
        driver.wait_for(lambda: len(WORKER.findall(driver.said)) > kill)  # noqa: B023
        time.sleep(draw.uniform(0, 0.2))
        os.kill(int(WORKER.findall(driver.said)[-1]), signal.SIGKILL)
        driver.wait_for(lambda: driver.said.count("a worker is lost and replaced") == kill)  # noqa: B023
    before = done(out)
    driver.wait_for(lambda: done(out) > before)
    driver.process.kill()
    driver.process.wait()
    assert done(out) < 200, f"{seed}: nothing was left to go on with"
    again = driven(requests, out, address)
    assert again.process.wait(START) == 0, f"{seed}: {again.said}"
    torch.set_num_threads(1)
    assert run(requests, tmp_path / "one") == 0
    assert len(results(out)) == 200 and results(out) == results(tmp_path / "one"), seed
    for line in range(1, 201):
        name = f"{line:06d}.png"
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), f"{seed}: {name}"
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device", "cuda"), "cluster of 0 GPUs"),
        (("--workers", "3"), "3 workers are too many for a cluster of 2 CPUs"),
    ],
)
def test_more_than_the_cluster_has(address: str, tmp_path: Path, capsys, options, said: str) -> None:
    requests = file_of(tmp_path, [{"prompt": "a fox", **SMALL}])
    torch.set_num_threads(1)
    assert run(requests, tmp_path / "out", "--ray", address, *options) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_workers_of_another_version(address: str, tmp_path: Path, capsys, monkeypatch) -> None:
    known = Drawing.versions
    monkeypatch.setattr(Drawing, "versions", lambda self: {**known(self), "torch": "1.0"})
    requests = file_of(tmp_path, [{"prompt": "a fox", **SMALL}])
    torch.set_num_threads(1)
    assert run(requests, tmp_path / "out", "--ray", address) == 1
    said = capsys.readouterr().err
    assert torch.__version__ in said and "here it is 1.0" in said and results(tmp_path / "out") == {}


class Dying(Drawing):
    """Its worker's process ends at one of the requests."""

    def begin(self, device: str):
        def draw(item) -> Drawn:
            if item[1][0].prompt == "death":
                os._exit(1)
            return Drawn({request.id: b"" for request in item[1]})

        return draw


def test_a_request_that_kills_its_workers_is_given_up_and_the_others_are_drawn(
    address: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    prompts = ["a", "death", *"bcdefgh"]
    requests = file_of(tmp_path, [{"prompt": prompt} for prompt in prompts])
    given = parser().parse_args([str(requests), str(tmp_path), "--model", str(NANO)])
    cluster = Cluster(address)
    try:
        todo = list(enumerate(cut(read(requests).requests, 1)))
        results = cluster.results(Dying(job_of(given, "cpu")), todo, cluster.room(1, "cpu"))
        found = {batch[0].prompt: drawn for (_, batch), drawn in results}
    finally:
        cluster.close()
    assert found.keys() == set(prompts)
    assert [prompt for prompt, drawn in found.items() if not drawn.pictures] == ["death"]
    assert "3 workers were lost" in found["death"].again
