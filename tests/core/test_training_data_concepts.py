"""Concepts are found in captions of both languages, ranked by PageRank and weighed by rarity."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.core.drawn_faults import plant
from zimage_core.train.data.__main__ import main
from zimage_core.train.data.concepts import STRENGTH, find, read_links
from zimage_core.train.data.records import DataError, PictureRecord
from zimage_core.train.data.store import load

TEXTS = json.loads(Path(__file__).with_name("training_data.json").read_text("utf-8"))
LINKS = {"fox": ("animal",), "wolf": ("animal",), "animal": ("living thing",), "fire engine": ("vehicle",)}


def records(*captions: str, repeats: int = 1) -> list[PictureRecord]:
    return [PictureRecord(Path(f"{n}.png"), (text,), repeats) for n, text in enumerate(captions)]


def test_names_tags_and_parents_are_found() -> None:
    found = find(records("two foxes near a fire engine", "A wolf.", "red fire engine, snow", "snow"), LINKS)
    assert {"fox", "animal", "living thing", "fire engine", "vehicle"} <= found.names[0]
    assert {"wolf", "animal"} <= found.names[1] and "near" not in found.names[0]
    assert found.counts["animal"] == 2 and found.counts["fire engine"] == 2 and found.counts["snow"] == 2


def test_chinese_captions() -> None:
    links = {child: tuple(parents) for child, parents in TEXTS["links"].items()}
    found = find(records(*TEXTS["captions"]), links)
    assert [sorted(names) for names in found.names] == TEXTS["concepts"]


def test_the_rarer_thing_has_the_larger_weight() -> None:
    """At captions of one length the ratio is that of BM25's rarity, to the power of STRENGTH."""
    data = records(*["a fox"] * 100, *["a wolf"] * 5, *["a bear"] * 100)
    links = {name: ("animal",) for name in ("fox", "wolf", "bear")}
    weights = find(data, links).weights

    def rarity(count: int) -> float:
        return math.log(1 + (205 - count + 0.5) / (count + 0.5))

    ratio = math.exp(STRENGTH * (rarity(5) - rarity(100)))
    assert weights[100] / weights[0] == pytest.approx(ratio)
    assert np.mean(weights) == pytest.approx(1)
    assert ratio > 3


def test_repeats_make_a_thing_less_rare() -> None:
    data = records("a fox", repeats=20) + records("a wolf", "a wolf", "a bear", "a bear")
    found = find(data, {name: ("animal",) for name in ("fox", "wolf", "bear")})
    assert found.counts["fox"] == 20 and found.weights[1] > found.weights[0]
    assert sum(w * r.repeats for w, r in zip(found.weights, data, strict=True)) == pytest.approx(24)


def test_a_word_that_stands_alone_is_no_concept() -> None:
    """Misspelt and invented words must not get the largest weight."""
    data = records(*["a fox in snow"] * 10, "a fxo in snow", *["a castle at night"] * 10)
    found = find(data)
    assert "fxo" not in found.counts and {"fox", "snow", "castle", "night"} <= set(found.counts)
    assert found.weights[10] == pytest.approx(found.weights[0], rel=0.2)


def test_ranks_are_those_of_the_power_method() -> None:
    found = find(records("fox, snow", "fox, snow", "fox, night", "wolf, night", "wolf, snow"), None)
    names = sorted(found.ranks)
    together = {("fox", "snow"): 2, ("fox", "night"): 1, ("night", "wolf"): 1, ("snow", "wolf"): 1}
    matrix = np.zeros((len(names), len(names)))
    for (a, b), count in together.items():
        i, j = names.index(a), names.index(b)
        matrix[i, j] = matrix[j, i] = count
    matrix /= matrix.sum(1, keepdims=True)
    rank = np.full(len(names), 1 / len(names))
    for _ in range(200):
        rank = 0.15 / len(names) + 0.85 * rank @ matrix
    assert [found.ranks[name] for name in names] == pytest.approx(rank.tolist(), abs=1e-5)


def test_without_captions_all_weigh_the_same() -> None:
    found = find([PictureRecord(Path("a.png")), PictureRecord(Path("b.png"))])
    assert found.weights == (1.0, 1.0) and find([]).weights == ()


def test_without_networkx_the_rest_runs_and_that_is_said(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    found = find(records("a fox", "a fox", "a wolf", "a wolf"), LINKS)
    assert found.counts["animal"] == 4 and "pip install networkx" in found.missing


@pytest.mark.parametrize("text", ["[", "[]", "{}", '{"fox": 3}', '{"fox": [3]}'])
def test_links_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "links.json").write_text(text)
    with pytest.raises(DataError, match="links.json"):
        read_links(tmp_path / "links.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_links(tmp_path / "none.json")


def test_links_may_be_one_name_or_several_and_a_circle(tmp_path: Path) -> None:
    (tmp_path / "links.json").write_text('{"Fox": "Animal", "animal": ["being", "fox"]}')
    links = read_links(tmp_path / "links.json")
    assert links == {"fox": ("animal",), "animal": ("being", "fox")}
    assert find(records("a fox"), links).names[0] == {"fox", "animal", "being"}


def test_the_command_writes_weights_where_asked(tmp_path: Path) -> None:
    plant(tmp_path, 1, each=1, clean=6)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["caption"] = "a wolf, snow" if number == 0 else "a fox, snow"
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "links.json").write_text(json.dumps(LINKS))
    command = [str(tmp_path / "data.jsonl"), "--side", "64", "--skip", "text", "--skip", "duplicates"]
    command += ["--links", str(tmp_path / "links.json"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert {record.weight for record in load(tmp_path / "out" / "data.jsonl").pictures} == {1.0}
    assert main([*command, "--weights"]) == 0
    weights = [record.weight for record in load(tmp_path / "out" / "data.jsonl").pictures]
    assert weights[0] == max(weights) > min(weights) > 0
