"""What is wrong with pictures is found, what is right is left alone, and each part can be missing."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.core.drawn_faults import COPIES, drawing, plant
from tests.core.random_models import seeds
from tests.long import size
from zimage_core.train.data import duplicates
from zimage_core.train.data.__main__ import main
from zimage_core.train.data.alignment import part_of, thumbnail
from zimage_core.train.data.duplicates import Edge, communities
from zimage_core.train.data.fingerprints import Fingerprints, fingerprint
from zimage_core.train.data.inspection import Plan, inspect
from zimage_core.train.data.picture_text import TextLine, TextReader, unmentioned
from zimage_core.train.data.profile import Thresholds, findings, measure
from zimage_core.train.data.report import COLUMNS, contact_sheet
from zimage_core.train.data.store import load

SMALL = Thresholds(side=64)
EACH = 10


def kinds_found(report) -> dict[str, set[str]]:
    """File names by fault, in the words of the planted ones."""
    found: dict[str, set[str]] = {}
    copies = {f"{words} of": fault for fault, words in COPIES.items()}
    for finding in report.found:
        kind = finding.kind
        if kind == "duplicate":
            kind = next(fault for words, fault in copies.items() if finding.reason.startswith(words))
        found.setdefault(kind, set()).add(Path(finding.path).name)
    return found


def test_planted_faults_are_found_and_nothing_else(tmp_path: Path) -> None:
    (seed,) = seeds(1)
    faults = plant(tmp_path, seed, EACH, clean=3 * EACH)
    records, report = inspect(load(tmp_path / "data.jsonl"), Plan(SMALL, skip={"text"}))
    found = kinds_found(report)
    assert report.missing == []
    for fault in sorted(set(faults.values())):
        planted = {name for name, kind in faults.items() if kind == fault}
        right = planted & found.get(fault, set())
        assert len(right) >= 0.9 * len(planted) and len(right) >= 0.9 * len(found[fault]), (
            fault, planted - right, found[fault] - right,
        )  # fmt: skip
    stay = {record.path.name for record in records if not record.drop}
    assert len(stay ^ (set(r.path.name for r in records) - set(faults))) <= 2
    assert report.kept == len(stay)


def test_a_kind_that_is_kept_is_named_and_not_dropped(tmp_path: Path) -> None:
    image = drawing(random.Random(1))
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.png")
    plan = Plan(Thresholds(side=10_000), keep={"small", "duplicate"}, skip={"text"})
    records, report = inspect(load(tmp_path), plan)
    assert [record.drop for record in records] == ["", ""]
    assert sorted(found.kind for found in report.found) == ["duplicate", "small", "small"]
    assert not any(found.drops for found in report.found)


def test_a_picture_that_breaks_off_is_named_and_the_others_are_looked_at(tmp_path: Path) -> None:
    for number in range(3):
        drawing(random.Random(number)).save(tmp_path / f"{number}.png")
    content = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(content[: len(content) // 2])  # its header is whole
    records, report = inspect(load(tmp_path), Plan(SMALL, skip={"text"}))
    assert [bool(record.drop) for record in records] == [False, True, False]
    assert [(Path(f.path).name, f.kind) for f in report.found] == [("1.png", "unreadable")]


def test_empty_and_transparent_pictures() -> None:
    def kinds(image: Image.Image) -> list[tuple[str, bool]]:
        return [(f.kind, f.drops) for f in findings(measure(image, 10_000), Thresholds(side=16))]

    assert kinds(Image.new("RGB", (64, 64), "grey")) == [("empty", True)]
    assert kinds(Image.new("RGBA", (64, 64), (0, 0, 0, 0))) == [("empty", True)]
    half = drawing(random.Random(0)).convert("RGBA")
    half.putalpha(Image.new("L", half.size, 255))
    assert kinds(half) == []
    half.paste((0, 0, 0, 0), (0, 0, 40, half.height))
    assert kinds(half) == [("transparent", False)]


def test_measures_of_known_pictures() -> None:
    """The wider an edge, the smaller its Laplacian beside its gradient; a border has its closed form."""
    x = np.arange(256)
    previous = 9.0
    for width in (1.5, 3.0, 6.0):
        edge = 128 + 100 * np.tanh((x - 128) / width)
        image = Image.fromarray(edge[None].repeat(256, 0).round().astype(np.uint8)).convert("RGB")
        found = measure(image, 1).sharpness
        assert 0.3 / width <= found <= 2 / width and found < previous
        previous = found
    stripes = np.full((64, 64, 3), 100, np.uint8)
    stripes[:, 32:] = 200
    assert measure(Image.fromarray(stripes), 64 * 64 * 2).border == pytest.approx(50, abs=1)
    assert measure(Image.fromarray(stripes), 64 * 64 * 2).compression == 2.0


def test_text_that_a_caption_quotes_is_meant() -> None:
    lines = [TextLine("HELLO World", 0.99, 0.1), TextLine("\u7981\u6b62\u590d\u5236", 0.99, 0.1)]
    assert unmentioned(lines, ["a sign that says 'hello world'"]) == lines[1:]
    assert unmentioned(lines, ["hello-world, \u7981\u6b62\u590d\u5236"]) == []


def test_text_in_a_picture_drops_it_where_no_caption_quotes_it(tmp_path: Path) -> None:
    faults = plant(tmp_path, 6, each=3, clean=4, kinds=("text",))
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    rows = [row for row in rows if faults.get(row["image_path"]) in (None, "text")]
    rows[-1]["caption"] = "a poster: SAMPLE, PREVIEW, STOCK, DO NOT COPY"
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records, report = inspect(load(tmp_path / "data.jsonl"), Plan(SMALL))
    assert report.counts() == {"text": 2} and "text in pictures" in report.ran
    assert [bool(record.drop) for record in records] == [False] * 4 + [True, True, False]


def test_text_is_read_in_pictures_of_every_size() -> None:
    reader = TextReader()
    for side, letters in ((160, 20), (900, 60)):
        image = Image.new("RGB", (side, side), (230, 230, 210))
        ImageDraw.Draw(image).text((side / 2, side / 3), "GARDEN 27", "black", anchor="mm", font_size=letters)
        (line,) = reader.read(image)
        assert re.sub(r"\W", "", line.text) == "GARDEN27" and 0 < line.share < 0.3
    assert reader.read(drawing(random.Random(0))) == []


# ---- copies


@pytest.mark.parametrize("seed", seeds(5))
def test_a_part_is_found_where_it_was_cut_out(seed: int) -> None:
    dice = random.Random(seed)
    image = drawing(dice).resize((500, 400), Image.Resampling.BICUBIC)
    width, height = dice.randint(350, 480), dice.randint(280, 380)
    left, top = dice.randint(0, 500 - width), dice.randint(0, 400 - height)
    part = image.crop((left, top, left + width, top + height)).resize((width // 2, height // 2))
    match = part_of(thumbnail(part), thumbnail(image), part.size, image.size)
    wanted = (left / 500, top / 400, width / 500, height / 400)
    assert match.score >= duplicates.SAME
    assert np.abs(np.subtract(match.box, wanted)).max() <= 0.03
    other = drawing(dice)
    assert part_of(thumbnail(other), thumbnail(image), other.size, image.size).score < 0.7


def test_the_same_shape_in_another_colour_is_no_copy(tmp_path: Path) -> None:
    for name, colour in (("red", (220, 60, 60)), ("blue", (60, 104, 220))):
        image = Image.new("RGB", (128, 128), "white")
        ImageDraw.Draw(image).regular_polygon((64, 64, 40), 5, fill=colour)
        image.save(tmp_path / f"{name}.png")
    _, report = inspect(load(tmp_path), Plan(SMALL, skip={"text"}, keep={"tinted"}))
    assert "duplicate" not in report.counts()


def test_the_best_of_a_group_is_kept(tmp_path: Path) -> None:
    image = drawing(random.Random(3)).resize((400, 400), Image.Resampling.BICUBIC)
    image.resize((200, 200)).save(tmp_path / "a-small.png")
    image.save(tmp_path / "b-rough.jpg", quality=30)
    image.save(tmp_path / "c-best.png")
    image.crop((20, 20, 380, 390)).save(tmp_path / "d-part.png")
    (tmp_path / "e-other.png").write_bytes((tmp_path / "c-best.png").read_bytes())
    records, _ = inspect(load(tmp_path), Plan(SMALL, skip={"text"}))
    assert [record.path.name for record in records if not record.drop] == ["c-best.png"]
    drops = {record.path.name: record.drop for record in records if record.drop}
    assert all("c-best.png" in drop for drop in drops.values())
    assert "exact copy" in drops["e-other.png"] and "part of" in drops["d-part.png"]


def test_a_faulty_copy_is_not_the_one_that_stays(tmp_path: Path) -> None:
    """The larger one is too small for nobody, but its text drops it."""
    image = drawing(random.Random(5))
    image.resize((150, 150)).save(tmp_path / "fine.png")
    image.save(tmp_path / "large.png")
    rows = [{"image_path": "fine.png"}, {"image_path": "large.png", "drop": "the owner said so"}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    records, _ = inspect(load(tmp_path / "data.jsonl"), Plan(SMALL, skip={"text"}))
    assert [record.drop for record in records] == ["", "the owner said so"]


def test_a_chain_of_likenesses_is_parted() -> None:
    """Two rings of ten that hang together by one edge: Louvain parts them, union-find does not."""
    ring = [Edge(a, b, "copy", 1.0) for k in (0, 10) for a in range(k, k + 10) for b in range(a + 1, k + 10)]
    edges = [*ring, Edge(9, 10, "copy", 0.95)]
    groups, how, missing = communities(edges, 20)
    assert sorted(groups) == [list(range(10)), list(range(10, 20))] and "Louvain" in how and missing is None
    groups, how, _ = communities(edges, duplicates.LOUVAIN + 1)
    assert groups == [list(range(20))] and "union-find" in how


@pytest.mark.sampled
def test_each_picture_takes_few_bytes(tmp_path: Path, record_property) -> None:
    count = size(200, 10_000)
    prints, path = Fingerprints(count), tmp_path / "a.png"
    image = drawing(random.Random(0))
    image.save(path)
    found = fingerprint(path, image, imagehash)
    for index in range(count):
        prints.add(index, found)
    arrays = [value for value in vars(prints).values() if isinstance(value, np.ndarray)]
    in_file = [value for value in arrays if isinstance(value, np.memmap)]
    in_memory = sum(value.nbytes for value in arrays if not isinstance(value, np.memmap)) / count
    record_property("bytes of memory per picture", in_memory)
    assert in_memory <= 2_200 and sum(value.nbytes for value in in_file) / count <= 4_096


# ---- packages that are missing, and the command


@pytest.mark.parametrize("name", ["imagehash", "faiss", "rapidocr", "onnxruntime", "networkx"])
def test_without_a_package_the_report_says_so(tmp_path: Path, monkeypatch, name: str) -> None:
    for loaded in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    image = drawing(random.Random(0))
    for number in range(9):  # a group that Louvain would part
        image.save(tmp_path / f"{number}.jpg", quality=90 - 5 * number)
    skip = () if name in ("rapidocr", "onnxruntime") else ("text",)
    _, report = inspect(load(tmp_path), Plan(SMALL, skip=skip))
    package = {"faiss": "faiss-cpu"}.get(name, name)
    assert any(f"pip install {package}" in line for line in report.missing)
    assert "profile" in report.ran
    assert report.counts().get("duplicate", 0) == (0 if name == "faiss" else 8)


def test_the_command_writes_what_the_trainer_reads(tmp_path: Path) -> None:
    source = tmp_path / "in"
    faults = plant(source, 3, each=2, clean=8)
    command = [str(source / "data.jsonl"), "--out", str(tmp_path / "out"), "--side", "64", "--skip", "text"]
    assert main(command) == 0
    data = load(tmp_path / "out" / "data.jsonl")
    assert {record.path.name for record in data.pictures} & set(faults) == set()
    assert len(data.pictures) == 8 and len(data.records) == 18
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (report["pictures"], report["kept"]) == (18, 8) and len(report["found"]) == 10
    text = (tmp_path / "out" / "report.txt").read_text("utf-8")
    assert "18 pictures, 8 stay." in text and "duplicate: part of" in text
    with Image.open(tmp_path / "out" / "sheet.jpg") as sheet:
        assert sheet.width % COLUMNS == 0 and sheet.height > 200


def test_the_command_says_what_is_wrong_with_its_source(tmp_path: Path, caplog) -> None:
    assert main([str(tmp_path / "none")]) == 1
    assert "does not exist" in caplog.text


def test_the_sheet_frames_what_is_dropped(tmp_path: Path) -> None:
    faults = plant(tmp_path, 4, each=1, clean=3)
    records, report = inspect(load(tmp_path / "data.jsonl"), Plan(SMALL, skip={"text"}))
    sheet = contact_sheet(records, report.found)
    corners = [(1 + 134 * (k % COLUMNS), 1 + 148 * (k // COLUMNS)) for k in range(len(records))]
    framed = sum(sheet.getpixel(corner) != (255, 255, 255) for corner in corners)
    assert framed == len(faults) == 5
