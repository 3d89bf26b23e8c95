"""Pictures looked at over a Ray cluster of two workers: the report is that of one process, whoever dies."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.core import small_vlm
from tests.core.drawn_faults import drawing, plant
from tests.core.processes import ROOT
from tests.core.random_models import seeds
from tests.core.ray_head import START, Driver, started
from tests.host.launch import stand_in_for_missing_ops
from zimage_core.cluster import Cluster
from zimage_core.train.data.__main__ import main
from zimage_core.train.data.caption_match import Judging
from zimage_core.train.data.captioners import LocalCaptioner
from zimage_core.train.data.captions import caption_all
from zimage_core.train.data.each_picture import Item, one_by_one
from zimage_core.train.data.inspection import Plan, inspect
from zimage_core.train.data.over_cluster import ModelJudge, OverCluster
from zimage_core.train.data.picture_look import Looking, VisionEmbedder
from zimage_core.train.data.profile import Thresholds
from zimage_core.train.data.records import DataSet, PictureRecord
from zimage_core.train.data.store import load
from zimage_core.train.parts import files_in
from zimage_core.weights import load_vision_encoder

pytestmark = pytest.mark.long
NANO = ROOT / "models" / "nano"
DATA = ("zimage_core.train", "data")
WORKER = re.compile(r"a worker on \S+, process (\d+)")
WRITTEN = ("data.jsonl", "report.json", "report.txt", "sheet.jpg")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("ray")) as found:
        torch.set_num_threads(1)
        yield found


@pytest.fixture
def cluster(address: str) -> Iterator[Cluster]:
    found = Cluster(address)
    yield found
    found.close()


def command(source: Path, out: Path, *options: str | Path) -> list[str]:
    return [str(part) for part in (source, "--out", out, "--side", "64", *options)]


def test_workers_are_killed_and_the_report_is_that_of_one_process(address: str, tmp_path: Path) -> None:
    (seed,) = seeds(1)
    faults = plant(tmp_path / "in", seed, 6, 30, kinds=("blurred", "tinted", "text"))
    data = tmp_path / "in" / "data.jsonl"
    content = (tmp_path / "in" / "0005.png").read_bytes()
    (tmp_path / "in" / "0005.png").write_bytes(content[: len(content) // 2])
    driver = Driver(tmp_path / "log", *DATA, *command(data, tmp_path / "out", "--ray", address))
    for kill in (1, 2):
        driver.wait_for(lambda: len(WORKER.findall(driver.said)) > kill)  # noqa: B023
        time.sleep(random.Random(seed + kill).uniform(0.5, 2))
        os.kill(int(WORKER.findall(driver.said)[-1]), signal.SIGKILL)
        driver.wait_for(lambda: driver.said.count("a worker is lost and replaced") == kill)  # noqa: B023
    assert driver.process.wait(START) == 0, f"{seed}: {driver.said}"
    assert main(command(data, tmp_path / "one")) == 0
    for name in WRITTEN:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), (seed, name)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["pictures"] == 30 + len(faults) and report["counts"]["unreadable"] == 1
    assert report["counts"]["text"] >= 5 and report["counts"]["duplicate"] >= 14


class Deadly:
    """An embedder that ends its process at a picture of one size, but not in the tests' own."""

    def __init__(self) -> None:
        self.spared = os.getpid()

    def __call__(self, image: Image.Image) -> np.ndarray:
        if image.size == (77, 77) and os.getpid() != self.spared:
            os._exit(1)
        return np.asarray(image.convert("RGB").resize((2, 2)), np.float32).ravel() / 1000


def test_a_picture_that_kills_its_workers_is_given_up_alone(cluster: Cluster, tmp_path: Path) -> None:
    for number in range(40):
        image = drawing(random.Random(number))
        (image.resize((77, 77)) if number == 7 else image).save(tmp_path / f"{number:02}.png")
    data, plan = load(tmp_path), Plan(Thresholds(side=64), skip={"text"}, embed=Deadly())
    records, report = inspect(data, plan, OverCluster(cluster, 1, False))
    wanted, _ = inspect(data, plan)
    assert [a == b for a, b in zip(records, wanted, strict=True)] == [n != 7 for n in range(40)]
    assert "unreadable: 3 workers were lost" in records[7].drop and report.counts()["unreadable"] == 1


# Other processes have not the operators that the tests' own process was given.
class Captioner(LocalCaptioner):
    def on(self, device: str) -> LocalCaptioner:
        stand_in_for_missing_ops()
        return super().on(device)


class Embedder(VisionEmbedder):
    @cached_property
    def encoder(self) -> nn.Module:
        stand_in_for_missing_ops()
        return load_vision_encoder(self.file).eval()


def test_models_find_on_workers_what_they_find_in_one_process(cluster: Cluster, tmp_path: Path) -> None:
    small_vlm.save(tmp_path / "model", torch.float32)
    given = []
    for number in range(4):
        drawing(random.Random(number)).save(tmp_path / f"{number}.png")
        given.append(PictureRecord(tmp_path / f"{number}.png", (f"picture {number}",)))
    over = OverCluster(cluster, 2, True)
    found = caption_all(given[:2], Captioner(tmp_path / "model"), over=over)
    assert found == caption_all(given[:2], LocalCaptioner(tmp_path / "model"))
    assert all(len(record.captions) > 1 for record in found[0])
    plan, judge = (
        Plan(skip={"text"}, embed=Embedder(NANO / "vision.safetensors")),
        ModelJudge(files_in(NANO), 64),
    )
    here = inspect(DataSet(tuple(given)), replace(plan, judge=judge.on("cpu")))
    there = inspect(DataSet(tuple(given)), replace(plan, judge=judge), over)
    assert there[0] == here[0] and there[1].as_json() == here[1].as_json()
    assert any("embeddings" in line for line in there[1].ran)
    items = [Item(n, record.path, (record.captions[0], ["a fox"], n)) for n, record in enumerate(given)]
    gains = dict(over(Judging(judge), items))
    assert gains == dict(one_by_one(Judging(judge.on("cpu")), items)) and len(gains) == len(given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--workers", "3"), "3 workers are too many for a cluster of 2 CPUs"),
        (("--workers", "0"), "--workers 0: expected 1 or more"),
        (("--pairs", "pairs.jsonl"), "leave out --ray"),
    ],
)
def test_more_than_the_cluster_has(address: str, tmp_path: Path, caplog, options, said: str) -> None:
    drawing(random.Random(0)).save(tmp_path / "a.png")
    assert main(command(tmp_path, tmp_path / "out", "--ray", address, *options)) == 1
    assert said in caplog.text and not (tmp_path / "out").exists()


def test_nobody_at_the_address(address: str, tmp_path: Path, caplog) -> None:
    drawing(random.Random(0)).save(tmp_path / "a.png")
    assert main(command(tmp_path, tmp_path / "out", "--ray", "127.0.0.1:9")) == 1
    assert "no Ray cluster answers at 127.0.0.1:9" in caplog.text and "ray start --head" in caplog.text


def test_workers_of_another_version_and_without_a_model(
    cluster: Cluster, tmp_path: Path, monkeypatch
) -> None:
    drawing(random.Random(0)).save(tmp_path / "a.png")
    over, known = OverCluster(cluster, 1, True), Looking.versions
    with monkeypatch.context() as patch:
        patch.setattr(Looking, "versions", lambda self: {**known(self), "numpy": "1.0"})
        with pytest.raises(RuntimeError, match=r"numpy of \S+ is .*, here it is 1.0: results would differ"):
            inspect(load(tmp_path), Plan(), over)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    given = [PictureRecord(tmp_path / "a.png")]
    with pytest.raises(RuntimeError, match=r"a worker on \S+ cannot start: .*does not load as a vision-lang"):
        caption_all(given, Captioner(tmp_path / "model"), over=over)
    embed = Embedder(NANO / "vision.safetensors")
    embed.file = tmp_path / "none.safetensors"
    with pytest.raises(RuntimeError, match=r"a worker on \S+ cannot start: .*none.safetensors"):
        inspect(load(tmp_path), Plan(embed=embed), over)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_ends_with_its_workers(address: str, tmp_path: Path, number: int) -> None:
    plant(tmp_path / "in", 3, 30, 60, kinds=("text",))
    given = command(tmp_path / "in" / "data.jsonl", tmp_path / "out", "--ray", address)
    driver = Driver(tmp_path / "log", *DATA, *given)
    driver.wait_for(lambda: len(WORKER.findall(driver.said)) == 2)
    driver.process.send_signal(number)
    assert driver.process.wait(60) == 130, driver.said
    assert "stopped" in driver.said and "Traceback" not in driver.said
    end = time.monotonic() + 60
    while any(map(runs, map(int, WORKER.findall(driver.said)))):
        assert time.monotonic() < end, driver.said
        time.sleep(0.1)
    assert not (tmp_path / "out").exists()


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
