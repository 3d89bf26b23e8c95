"""Data sets as people have them: every kind of source, and everything that can be wrong with one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zimage_core.train.data.picture_files import Limits, PictureError, open_picture, read_header
from zimage_core.train.data.store import DataError, load, write


def picture(path: Path, colour: tuple[int, ...] = (200, 30, 60), size: tuple[int, int] = (40, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(path)
    return path


def captioned(path: Path, text: str, **how) -> Path:
    picture(path, **how)
    path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


def by_name(data) -> dict[str, tuple]:
    return {r.path.name: (r.captions, r.repeats, r.weight) for r in data.pictures}


def test_a_folder_with_texts_and_kohya_s_repeats(tmp_path: Path) -> None:
    captioned(tmp_path / "a.png", "a fox,\n  running ")
    captioned(tmp_path / "3_castle" / "b.jpg", "a castle")
    captioned(tmp_path / "3_castle" / "deeper" / "c.webp", "a tower")
    data = load(tmp_path)
    assert by_name(data) == {
        "a.png": (("a fox, running",), 1, 1.0),
        "b.jpg": (("a castle",), 3, 1.0),
        "c.webp": (("a tower",), 1, 1.0),
    }
    assert data.problems == ()
    assert {record.size for record in data.pictures} == {(40, 24)}


def test_a_year_at_the_front_of_a_folder_s_name_is_said(tmp_path: Path) -> None:
    captioned(tmp_path / "2024_holiday" / "a.png", "a beach")
    data = load(tmp_path)
    assert data.pictures[0].repeats == 2024
    assert len(data.problems) == 1 and "counts 2024 times" in data.problems[0]


def test_captions_that_are_missing_empty_or_no_utf8_lose_no_picture(tmp_path: Path) -> None:
    for name in ("none", "empty", "other", "marked"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "empty.txt").write_bytes(b" \n")
    (tmp_path / "other.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfa fox")
    data = load(tmp_path)
    assert {name: found[0] for name, found in by_name(data).items()} == {
        "none.png": (), "empty.png": (), "other.png": (), "marked.png": ("a fox",),
    }  # fmt: skip
    assert len(data.problems) == 3
    for name, words in (("none.txt is missing", ""), ("empty.txt", "is empty"), ("other.txt", "0xe9 at 3")):
        assert any(name in line and words in line for line in data.problems)


def test_two_pictures_with_one_stem_are_both_kept_and_named(tmp_path: Path) -> None:
    captioned(tmp_path / "a.png", "a fox")
    picture(tmp_path / "a.jpg")
    data = load(tmp_path)
    assert [record.captions for record in data.pictures] == [("a fox",), ("a fox",)]
    assert sum("shares the caption" in line for line in data.problems) == 2


def test_a_long_caption_is_cut_and_that_is_said(tmp_path: Path) -> None:
    captioned(tmp_path / "a.png", "fox \u72d0" * 5_000)
    (tmp_path / "data.jsonl").write_text(json.dumps({"image_path": "a.png", "caption": "x" * 20_000}))
    for source in (tmp_path, tmp_path / "data.jsonl"):
        data = load(source)
        assert len(data.pictures[0].captions[0]) <= Limits().characters
        assert any("cut to" in line or "rest is not read" in line for line in data.problems)


# ---- jsonl


def test_a_jsonl_with_captions_by_kind(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "a.png")
    rows = [
        {"image_path": "in/a.png", "caption": "a fox"},
        {"file_name": "in/a.png", "text": "one", "repeats": 2, "weight": 0.5},
        {"image_path": "in/a.png", "captions": {"long": "a red fox", "tags": "fox, red"}},
        {"image_path": "in/a.png", "captions": ["one", "two"]},
        {"image_path": "in/a.png", "caption": "blurred", "drop": "blurred"},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = load(tmp_path / "data.jsonl")
    assert [record.captions for record in data.pictures] == [
        ("a fox",), ("one",), ("a red fox", "fox, red"), ("one", "two"),
    ]  # fmt: skip
    assert (data.pictures[1].repeats, data.pictures[1].weight) == (2, 0.5)
    assert data.pictures[2].by_kind == {"long": "a red fox", "tags": "fox, red"}
    assert [record.drop for record in data.records if record.drop] == ["blurred"]
    assert data.problems == ()


BAD_ROWS = {
    "{broken": "no JSON",
    "[1]": "expected an object",
    "{}": "expected the picture's path",
    '{"image_path": 3}': "expected the picture's path",
    '{"image_path": "a.png", "caption": 5}': "expected a text",
    '{"image_path": "a.png", "caption": "x", "weight": NaN}': "NaN is no number",
    '{"image_path": "a.png", "caption": "x", "weight": -1}': "from 0 to 10,000",
    '{"image_path": "a.png", "caption": "x", "repeats": 0}': "from 1 to",
    '{"image_path": "a.png", "caption": "x", "repeats": true}': "from 1 to",
    '{"image_path": "a.png", "captions": [{"text": 1}]}': "expected texts",
    "[" * 100_000: "too many brackets",
    '"' + "x" * (1 << 20) + '"': "longer than",
}


@pytest.mark.parametrize("row", BAD_ROWS, ids=lambda row: row[:30])
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, row: str) -> None:
    picture(tmp_path / "a.png")
    good = json.dumps({"image_path": "a.png", "caption": "a fox"})
    (tmp_path / "data.jsonl").write_text("\n".join((good, row, good)))
    data = load(tmp_path / "data.jsonl")
    assert len(data.pictures) == 2
    assert len(data.problems) == 1 and "line 2" in data.problems[0] and BAD_ROWS[row] in data.problems[0]


def test_a_line_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    good = json.dumps({"image_path": "a.png", "caption": "a fox"}).encode()
    (tmp_path / "data.jsonl").write_bytes(good + b'\n{"image_path": "\xff.png"}\n' + good)
    data = load(tmp_path / "data.jsonl")
    assert len(data.pictures) == 2 and "line 2 is left out: no UTF-8" in data.problems[0]


def test_very_many_problems_are_counted_and_not_all_kept(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = ['{"image_path": "a.png", "caption": "x"}', *["{"] * 1_500]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    problems = load(tmp_path / "data.jsonl").problems
    assert len(problems) == 1_001 and problems[-1] == "... and 500 more such lines"


@pytest.mark.long
def test_a_million_lines_with_one_bad(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with open(tmp_path / "data.jsonl", "w") as file:
        for number in range(1_000_000):
            file.write("{bad\n" if number == 777_776 else '{"image_path": "a.png", "caption": "x"}\n')
    data = load(tmp_path / "data.jsonl")
    assert len(data.pictures) == 999_999
    assert len(data.problems) == 1 and "line 777777" in data.problems[0]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    captioned(tmp_path / "in" / "2_x" / "a.png", "a fox")
    picture(tmp_path / "in" / "b.png", (1, 2, 3))
    (tmp_path / "in" / "c.png").write_bytes(b"no picture")
    first = load(tmp_path / "in")
    write(first.records, tmp_path / "in" / "out.jsonl")
    again = load(tmp_path / "in" / "out.jsonl")
    assert again.records == first.records
    assert again.hash == first.hash


# ---- musubi's TOML


def test_musubi_s_toml(tmp_path: Path) -> None:
    captioned(tmp_path / "one" / "a.png", "not this")
    (tmp_path / "one" / "a.caption").write_text("a fox")
    picture(tmp_path / "two" / "b.png")
    (tmp_path / "two.jsonl").write_text('{"image_path": "two/b.png", "caption": "a castle"}')
    (tmp_path / "data.toml").write_text(
        '[general]\nresolution = [960, 544]\ncaption_extension = ".caption"\n'
        '[[datasets]]\nimage_directory = "one"\nnum_repeats = 4\n'
        f"[[datasets]]\nimage_jsonl_file = {json.dumps(str(tmp_path / 'two.jsonl'))}\n"
    )
    data = load(tmp_path / "data.toml")
    assert by_name(data) == {"a.png": (("a fox",), 4, 1.0), "b.png": (("a castle",), 1, 1.0)}
    assert len(data.problems) == 1 and "resolution are not read here" in data.problems[0]


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "x = [": "is no TOML",
        "x = 1": "expected [[datasets]]",
        "datasets = 3": "expected [[datasets]]",
        "[[datasets]]\n": "expected the path of a folder",
        '[[datasets]]\nimage_directory = "none"': "does not exist",
        '[[datasets]]\nvideo_directory = "."': "expected the path of a folder",
        '[[datasets]]\nimage_directory = "."\nnum_repeats = 0': "num_repeats: expected",
        '[[datasets]]\nimage_directory = "."\ncaption_extension = "/../x"': "file ending",
    }.items(),
)
def test_a_toml_that_says_no_data(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.toml").write_text(text)
    with pytest.raises(DataError, match="data.toml") as raised:
        load(tmp_path / "data.toml")
    assert words in str(raised.value)


# ---- what leads outside


@pytest.fixture
def rooms(tmp_path: Path) -> tuple[Path, Path]:
    """A folder that may be read, with one good picture, and one beside it that may not."""
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"  # the names begin alike
    captioned(inside / "good.png", "a fox")
    captioned(outside / "secret.png", "secret")
    return inside, outside


def test_links_that_lead_outside_are_refused_by_name(rooms: tuple[Path, Path]) -> None:
    inside, outside = rooms
    (inside / "picture.png").symlink_to(outside / "secret.png")
    (inside / "folder").symlink_to(outside)
    (inside / "relative").symlink_to("../inside-not")
    picture(inside / "text.png")
    (inside / "text.txt").symlink_to(outside / "secret.txt")
    (inside / "again").symlink_to(inside)  # a circle
    data = load(inside, root=inside)
    assert {name: found[0] for name, found in by_name(data).items()} == {
        "good.png": ("a fox",),
        "text.png": (),
    }
    for name in ("picture.png", "folder", "relative", "text.txt"):
        assert any(line.startswith(str(inside / name)) and "outside" in line for line in data.problems), name
    everywhere = load(inside)  # the command line
    assert ("secret",) in {record.captions for record in everywhere.pictures}


@pytest.mark.parametrize("form", ["{outside}/secret.png", "../inside-not/secret.png", "link/../secret.png"])
def test_paths_of_a_jsonl_that_lead_outside(rooms: tuple[Path, Path], form: str) -> None:
    inside, outside = rooms
    (outside / "deep").mkdir()
    (inside / "link").symlink_to(outside / "deep")  # link/.. is the folder outside
    name = form.format(outside=outside)
    rows = [{"image_path": n, "caption": "x"} for n in ("good.png", name)]
    (inside / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load(inside / "data.jsonl", root=inside)
    assert list(by_name(data)) == ["good.png"]
    assert len(data.problems) == 1 and name in data.problems[0] and "line 2" in data.problems[0]
    assert len(load(inside / "data.jsonl").pictures) == 2


@pytest.mark.parametrize("name", ["..", "../inside-not", "{outside}", "sub/.."])
def test_folders_of_a_toml_that_lead_outside(rooms: tuple[Path, Path], name: str) -> None:
    inside, outside = rooms
    name = name.format(outside=outside)
    (inside / "sub").mkdir()
    (inside / "data.toml").write_text(
        f"[[datasets]]\nimage_directory = {json.dumps(name)}\n[[datasets]]\nimage_directory = 'sub/..'\n"
    )
    data = load(inside / "data.toml", root=inside)
    assert set(by_name(data)) == {"good.png"}
    assert any(name in line and "outside" in line for line in data.problems) == (name != "sub/..")


def test_a_source_outside_of_the_root_is_an_error(rooms: tuple[Path, Path]) -> None:
    inside, outside = rooms
    with pytest.raises(DataError, match="outside"):
        load(outside, root=inside)
    with pytest.raises(DataError, match="outside"):
        load(inside / "..", root=inside)


# ---- pictures as they come


def png_that_claims(width: int, height: int) -> bytes:
    """A bomb: a small file whose header says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))


def test_damaged_pictures_are_named_and_dropped(tmp_path: Path) -> None:
    captioned(tmp_path / "good.png", "a fox")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(png_that_claims(60_000, 60_000))
    (tmp_path / "large.png").write_bytes(png_that_claims(9_000, 9_000))
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    data = load(tmp_path)
    assert list(by_name(data)) == ["good.png"]
    for name, words in {
        "empty.png": "0 bytes",
        "text.jpg": "no picture of the kinds",
        "bomb.png": "pixels",
        "large.png": "9000 x 9000 pixels",
        "pipe.png": "no plain file",
    }.items():
        assert any(name in line and words in line for line in data.problems), name
        assert any(r.path.name == name and words in r.drop for r in data.records), name


def test_a_picture_that_ends_too_early_is_an_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        out = io.BytesIO()
        Image.fromarray(noise).save(out, kind)
        for share in (0.3, 0.6, 0.9):
            path = tmp_path / "cut.bin"
            path.write_bytes(out.getvalue()[: int(len(out.getvalue()) * share)])
            with pytest.raises(PictureError):
                open_picture(path)


def test_other_languages_of_pictures_are_not_opened(tmp_path: Path) -> None:
    """EPS would start Ghostscript."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(PictureError, match="no picture of the kinds"):
        read_header(tmp_path / "a.png")


def test_every_mode_becomes_eight_bits(tmp_path: Path) -> None:
    grey = np.tile(np.linspace(0, 1, 32), (32, 1))
    wide, floats = tmp_path / "wide.png", tmp_path / "float.tiff"
    Image.fromarray((grey * 65535).astype(np.uint16)).save(wide)
    Image.fromarray(grey.astype(np.float32)).save(floats)
    for path in (wide, floats):
        found = np.asarray(open_picture(path), float)
        assert np.abs(found - (grey * 255)[..., None]).max() <= 1.5, path
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "c.jpg")
    assert open_picture(tmp_path / "c.jpg").mode == "RGB"
    assert open_picture(tmp_path / "c.jpg").getpixel((4, 4))[0] > 200
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(tmp_path / "p.png", transparency=1)
    assert open_picture(tmp_path / "p.png").getpixel((0, 0))[3] == 0
    assert open_picture(picture(tmp_path / "a.png", (9, 9, 9, 128))).mode == "RGBA"


def test_a_picture_that_was_turned_is_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste((255, 0, 0), (0, 0, 10, 20))  # the left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = open_picture(tmp_path / "a.jpg")
    assert read_header(tmp_path / "a.jpg").size == found.size == (20, 40)
    red, green, _ = found.getpixel((10, 3))
    assert red > 200 and green < 60


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = tmp_path / f"a.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    path.with_suffix(".txt").write_text("a square")
    data = load(tmp_path)
    assert len(data.pictures) == 1 and "animated" in data.problems[0]
    red, _, blue, *_ = open_picture(path).getpixel((8, 8))
    assert red > 200 and blue < 60


# ---- limits, hash, nothing there


def test_more_pictures_than_the_limit_are_said(tmp_path: Path) -> None:
    for number in range(5):
        captioned(tmp_path / f"{number}.png", "x")
    data = load(tmp_path, limits=Limits(pictures=3))
    assert len(data.records) == 3
    assert any("more than 3 pictures" in line for line in data.problems)


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    captioned(tmp_path / "one" / "a.png", "a fox")
    captioned(tmp_path / "one" / "b.png", "a castle", colour=(0, 0, 0))
    captioned(tmp_path / "two" / "z.png", "a fox")
    captioned(tmp_path / "two" / "y.png", "a castle", colour=(0, 0, 0))
    first = load(tmp_path / "one").hash
    assert len(first) == 64 and first == load(tmp_path / "two").hash
    (tmp_path / "two" / "z.txt").write_text("a dog")
    changed = load(tmp_path / "two").hash
    assert changed != first
    captioned(tmp_path / "two" / "z.png", "a dog", colour=(0, 0, 9))
    assert load(tmp_path / "two").hash not in (first, changed)
    assert hashlib.sha256().hexdigest() not in (first, changed)


def test_nothing_there_is_an_error_that_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)no picture.*a.png: the file is empty"):
        load(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "none")
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match="expected a folder, a .jsonl or a .toml"):
        load(tmp_path / "a.csv")


def test_names_that_are_no_text_are_said(tmp_path: Path) -> None:
    captioned(tmp_path / "good\u3000one.png", "a fox")
    picture(Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png")))
    picture(tmp_path / "line\nbreak.png")
    data = load(tmp_path)
    assert list(by_name(data)) == ["good\u3000one.png"]
    assert sum("rename it" in line for line in data.problems) == 2
    assert all(line.isprintable() for line in data.problems)
