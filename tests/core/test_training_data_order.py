"""Pictures looked at by others and in any order give the same report; other files there are an error."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.core.drawn_faults import plant
from tests.core.random_models import seeds
from zimage_core.cluster import Room
from zimage_core.train.__main__ import main as train
from zimage_core.train.data.__main__ import chosen_captioner, main
from zimage_core.train.data.caption_match import Judging, fits
from zimage_core.train.data.captions import KINDS, CaptionError, caption_all
from zimage_core.train.data.each_picture import Item, Map, Results, Work
from zimage_core.train.data.inspection import Plan, inspect
from zimage_core.train.data.over_cluster import OverCluster
from zimage_core.train.data.profile import Thresholds
from zimage_core.train.data.records import DataError, DataSet, PictureRecord
from zimage_core.train.data.store import load

SMALL = Thresholds(side=64)


def sent(value):
    return pickle.loads(pickle.dumps(value))


def shuffled(seed: int) -> Map:
    """As other processes do it: all is sent there and back, and comes in any order."""

    def over(work: Work, items: Iterable[Item]) -> Results:
        todo, done = list(items), sent(work).begin("cpu")
        random.Random(seed).shuffle(todo)
        for item in sent(todo):
            yield item.index, sent(done(item.path, item.known))

    return over


def mean_colour(image: Image.Image) -> np.ndarray:
    found = np.asarray(image.convert("RGB"), np.float32).mean((0, 1))
    return found / np.linalg.norm(found)


def faulty(folder: Path, seed: int) -> DataSet:
    """With copies, a file that breaks off, one that is missing, and one that was dropped before."""
    plant(folder, seed, each=1, clean=4)
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    rows[4]["drop"] = "the owner said so"
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load(folder / "data.jsonl")
    content = (folder / "0002.png").read_bytes()
    (folder / "0002.png").write_bytes(content[: len(content) // 2])
    (folder / "0003.png").unlink()
    return data


def test_a_report_is_the_same_in_any_order(tmp_path: Path) -> None:
    (seed,) = seeds(1)
    plan = Plan(SMALL, skip={"text"}, embed=mean_colour)
    data = faulty(tmp_path, seed)
    records, report = inspect(data, plan)
    told = []
    others, other = inspect(data, replace(plan, watch=lambda *at: told.append(at)), shuffled(seed))
    assert others == records and other.as_json() == report.as_json() and other.text() == report.text()
    assert report.counts()["unreadable"] == 3 and report.counts()["duplicate"]
    assert told == [(done, len(records)) for done in range(1, len(records) + 1)]


@dataclass(frozen=True)
class Describer:
    """A captioner whose answers follow from the picture and the question."""

    name: str = "a test"

    def on(self, device: str) -> Describer:
        return self

    def versions(self) -> dict[str, str]:
        return {}

    def answer(self, images: Sequence[Image.Image], question: str, max_tokens: int) -> str:
        if images[0].size == (77, 77):
            raise CaptionError("the model is ill")
        facts = hashlib.sha256(images[0].tobytes() + question.encode()).hexdigest()
        return json.dumps({kind: f"{kind} {facts}" for kind in KINDS})


def test_captions_are_the_same_in_any_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    for number in range(9):
        Image.effect_noise((77 if number == 4 else 60, 77), 50 + number).save(tmp_path / f"{number}.png")
    (tmp_path / "6.png").unlink()
    known = ["", "a fox", "<b>a dog</b>"]
    given = [PictureRecord(tmp_path / f"{n}.png", (known[n % 3],) if n % 3 else ()) for n in range(9)]
    given[7] = replace(given[7], drop="small")
    wanted = caption_all(given, Describer(), ("en", "zh"))
    assert caption_all(given, Describer(), ("en", "zh"), over=shuffled(3)) == wanted
    records, problems = wanted
    assert len(records[0].captions) == 10 and records[4].captions == ("a fox",)
    assert "the model is ill" in problems[1] and "6.png: there is no such file" in problems[2]


@dataclass(frozen=True)
class Judge:
    def on(self, device: str) -> Judge:
        return self

    def gain(self, image: Image.Image, caption: str, others: Sequence[str], seed: int) -> float:
        return len(caption) + len("".join(others)) / 100 + seed / 1000 + image.width / 10_000


def test_judgement_of_captions_is_the_same_in_any_order(tmp_path: Path) -> None:
    given = []
    for number in range(8):
        Image.new("RGB", (20 + number, 20)).save(tmp_path / f"{number}.png")
        captions = (f"caption {'x' * number}",) if number != 3 else ()
        given.append(PictureRecord(tmp_path / f"{number}.png", captions))
    wanted = fits(given, Judging(Judge()))
    found = fits(given, Judging(Judge()), over=shuffled(1))
    assert list(found.items()) == list(wanted.items()) and len(found) == 7


# ---- machines that have other files


@dataclass
class Elsewhere:
    """A cluster of one machine on which relative paths are in another folder."""

    folder: Path

    def room(self, workers: int | None, device: str | None = None, threads: int | None = None) -> Room:
        return Room("cpu", 1, 1)

    def results(self, task, items, room):
        done = sent(replace(task, folder=self.folder)).begin("cpu")
        return ((item, sent(done(item))) for item in items)


def test_a_machine_that_has_other_files_is_an_error_and_no_picture_is_dropped(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data, plan = faulty(Path("in"), 3), Plan(SMALL, skip={"text"})
    over = OverCluster(Elsewhere(tmp_path / "there"), None, False)
    with pytest.raises(DataError, match=r"0000.png cannot be read on \S+ \(there is no such file\)"):
        inspect(data, plan, over)
    shutil.copytree("in", tmp_path / "there" / "in")
    wanted, found = inspect(data, plan), inspect(data, plan, over)
    assert found[0] == wanted[0] and found[1].as_json() == wanted[1].as_json()
    with open(tmp_path / "there" / "in" / "0001.png", "ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"0001.png has [\d,]+ bytes on \S+, and here"):
        inspect(data, plan, over)


def test_a_picture_that_was_given_up_is_not_tried_here(tmp_path: Path) -> None:
    """It may end this process as well."""
    Image.effect_noise((300, 300), 60).save(tmp_path / "a.png")

    class Deadly(Elsewhere):
        def results(self, task, items, room):
            for chunk in items:
                yield chunk, task.given_up(chunk, "it died")

    records, report = inspect(load(tmp_path), Plan(), OverCluster(Deadly(tmp_path), None, False))
    assert report.found[0].kind == "unreadable" and "3 workers were lost" in records[0].drop
    assert "it died" in records[0].drop


# ---- the command


def test_without_ray_the_command_says_how_to_install_it(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    Image.effect_noise((300, 300), 60).save(tmp_path / "a.png")
    assert main([str(tmp_path), "--ray", "--out", str(tmp_path / "out")]) == 1
    assert "pip install ray" in caplog.text and not (tmp_path / "out").exists()


def test_the_command_tells_its_options_and_takes_them_in_any_order(tmp_path: Path, capsys, caplog) -> None:
    with pytest.raises(SystemExit) as ended:
        train(["data", "--help"])
    assert ended.value.code == 0 and "--ray [HOST:PORT]" in capsys.readouterr().out
    assert train(["data", "--skip", "text", str(tmp_path / "none")]) == 1
    assert "does not exist" in caplog.text


def test_workers_without_a_cluster_are_an_error(tmp_path: Path, caplog) -> None:
    Image.effect_noise((300, 300), 60).save(tmp_path / "a.png")
    assert main([str(tmp_path), "--workers", "2", "--out", str(tmp_path / "out")]) == 1
    assert "--workers is for --ray" in caplog.text and not (tmp_path / "out").exists()


@pytest.mark.parametrize("has_cuda", [False, True])
def test_a_local_captioner_takes_the_card_where_there_is_one(
    tmp_path: Path, monkeypatch, has_cuda: bool
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    captioner = chosen_captioner(Namespace(captioner=tmp_path))
    assert captioner.device == ("cuda" if has_cuda else "cpu")
    assert vars(sent(captioner)) == vars(captioner)
