"""Paired intervals hold what they promise; the page and the chart say what the measured file says."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import time
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from bench import published
from bench.cases import TEXTS, Case
from bench.chart import Bar, svg
from bench.paired import Measured, Others, interval, rows
from bench.table import publish
from bench.timing import turns
from tests.core.random_models import seeds

ROOT = Path(__file__).resolve().parents[2]
LATEST = max((ROOT / "bench" / "results").glob("*-cpu-speed.json"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(("count", "found"), [(3, False), (4, False), (5, True), (8, True), (20, True)])
def test_few_values_say_nothing(count: int, found: bool) -> None:
    assert (interval(list(range(count))) is not None) == found


@pytest.mark.parametrize("count", [5, 7, 8, 9, 12])
def test_an_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    """By every way in which the values may fall below and above the median, which are equally likely."""
    low, high = interval(range(1, count + 1))
    inside = sum(low <= sum(sides) < high for sides in itertools.product((0, 1), repeat=count))
    share = inside / 2**count
    assert 0.9 <= share
    narrower = sum(low + 1 <= sum(sides) < high - 1 for sides in itertools.product((0, 1), repeat=count))
    assert narrower / 2**count < 0.9  # no narrower one would do


@pytest.mark.parametrize("seed", seeds(1))
def test_of_skewed_times_too(seed: int) -> None:
    draw = random.Random(seed)
    held = 0
    for _ in range(2000):
        low, high = interval([draw.lognormvariate(0.1, 0.5) for _ in range(8)])
        held += low <= math.exp(0.1) <= high  # the median of what is drawn
    assert held / 2000 >= 0.9


def test_calls_take_turns_and_each_comes_first_once() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    after: list[int] = []
    times = turns(calls, "cpu", 3, after=lambda: after.append(len(order)))
    assert "".join(order) == "abcbcacab" and after == [3, 6, 9]
    assert all(len(seconds) == 3 for seconds in times.values())
    order.clear()
    turns(calls, "cpu", 9, until=time.monotonic() - 1)
    assert len(order) == 3 * 3  # the least that says anything


def test_others_at_work_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the cores that were busy, without this process's own time and without waiting."""
    stat, clock = tmp_path / "stat", iter([100.0, 110.0])
    monkeypatch.setattr(Others, "STAT", stat)
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    own = iter([SimpleNamespace(user=1.0, system=1.0), SimpleNamespace(user=5.0, system=2.0)])
    monkeypatch.setattr("os.times", lambda: next(own))
    stat.write_text("cpu  1000 0 500 99999 700 0 0 0 0 0\ncpu0 1 2 3\n")
    others = Others()
    stat.write_text("cpu  1700 0 600 99999 900 0 0 200 0 0\ncpu0 1 2 3\n")
    assert others.cores() == pytest.approx((10.0 - 5.0) / 10)  # 200 ticks of them taken by other machines


def found_rows() -> list[dict]:
    times = {"ours": [1.0, 1.1, 1.2, 0.9, 1.0], "native": [2.0, 2.2, 2.0, 2.0, 2.0], "limit": [0.5] * 5}
    peaks = {"ours": 10 << 20, "native": 20 << 20, "limit": 0}
    case = Case("forward", "bf16", pixels=256, layers=(2, 30))
    return list(rows(case, "CPU", Measured(times, peaks, [0.0, 0.5, 0.1, 0.0, 0.0]), {"native": "<= 0.7"}))


def test_rows_of_a_comparison() -> None:
    best, pairs = found_rows()[:3], found_rows()[3:]
    assert [row["value"] for row in best] == [900.0, 2000.0, 500.0]
    native = pairs[0]
    assert native["name"] == "CPU, one forward, bf16, 256x256, 2 of 30 layers: ours / native"
    assert native["value"] == pytest.approx(0.5) and native["holds"] is True
    assert (native["low"], native["high"]) == pytest.approx((0.45, 0.6))
    assert (native["ours_mib"], native["peer_mib"], native["rounds"], native["busy"]) == (10, 20, 5, 1)


def test_a_file_says_what_it_was_made_with(tmp_path: Path) -> None:
    about = {"date": "2026-01-02", "command": "c", "device": "d", "versions": {"torch": "1"}}
    publish(found_rows(), lambda text: None, tmp_path / "rows.json", about)
    found = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert {name: found[name] for name in about} == about
    assert found["rows"] == json.loads(json.dumps(found_rows()))


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (0.9, 0.85, 0.95, "faster"),
        (0.985, 0.98, 0.99, "even"),  # sure, and too little to matter
        (1.1, 1.05, 1.2, "slower"),
        (1.0, 0.98, 1.02, "even"),
        (0.9, 0.7, 1.1, "open"),
        (0.9, None, None, "open"),
    ],
)
def test_what_a_row_may_claim(value, low, high, word) -> None:
    assert published.verdict({"value": value, "low": low, "high": high}) == word


@pytest.mark.parametrize("language", published.PAGES)
def test_the_chart_has_a_bar_for_each_comparison(language: str) -> None:
    found = json.loads(LATEST.read_text(encoding="utf-8"))
    tree = ElementTree.fromstring(published.chart(found, language))
    compared = published.compared(found)
    widths = [float(bar.get("width")) for bar in tree.iter(f"{SVG}rect")]
    assert len(widths) == len(compared)
    ratios = [row["value"] for row in compared]
    assert all(
        abs(width / widths[0] - ratio / ratios[0]) < 0.01 for width, ratio in zip(widths, ratios, strict=True)
    )
    texts = [text.text for text in tree.iter(f"{SVG}text")]
    assert all(f"{ratio:.2f}" in texts for ratio in ratios)


def test_a_chart_with_signs_of_its_own_language() -> None:
    drawn = svg("a < b & c", [Bar("x < 1 & y", 0.5, 0.4, 0.6, "faster"), Bar("z", 3.0, 2.0, 4.0, "slower")])
    texts = [text.text for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    assert {"a < b & c", "x < 1 & y", "z", "4"} <= set(texts)


@pytest.mark.parametrize(("language", "name"), published.PAGES.items())
def test_the_pages_say_what_was_measured_last(language: str, name: str) -> None:
    found = json.loads(LATEST.read_text(encoding="utf-8"))
    text = (published.DOCS / name).read_text(encoding="utf-8")
    again = f"run: python -m bench.published {LATEST.relative_to(ROOT)}"
    assert published.page(text, found, language) == text, again
    drawn = (published.DOCS / published.chart_name(language)).read_text(encoding="utf-8")
    assert drawn == published.chart(found, language), again
    table = re.findall(r"^\| .* \|$", text.partition(published.BEGIN)[2], re.MULTILINE)
    assert len(table) >= len(published.compared(found)) + 1


def test_a_page_without_its_marks_is_named() -> None:
    with pytest.raises(ValueError, match="lacks the lines"):
        published.page("nothing here", {"rows": []}, "en")


def test_every_text_is_there_in_both_languages() -> None:
    for group in ("cases", "peers", "details", "verdicts"):
        assert all(set(texts) == set(published.PAGES) for texts in TEXTS[group].values())
    assert len({len(columns) for columns in TEXTS["columns"].values()}) == 1
