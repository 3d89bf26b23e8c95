"""Choices in prompts: what is drawn, what stays as it stands, and what no text can make the server read."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from zimage_core.prompt.wildcards import WildcardError, Wildcards, draw

CASES = json.loads(Path(__file__).with_name("wildcards.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "wildcards"
    for name, text in CASES["files"].items():
        write(folder, name, text)
    return folder


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def refusal(text: str, folder: Path) -> str:
    with pytest.raises(WildcardError) as error:
        draw(text, 1, Wildcards(folder))
    return str(error.value)


@pytest.mark.parametrize(("text", "expected"), CASES["literal"].items())
def test_what_is_no_choice_stays(folder: Path, text: str, expected: str) -> None:
    assert draw(text, 1, Wildcards(folder)) == expected


@pytest.mark.parametrize(("text", "possible"), CASES["drawn"].items())
def test_every_choice_and_nothing_else_is_drawn(folder: Path, text: str, possible: list[str]) -> None:
    assert {draw(text, seed, Wildcards(folder)) for seed in range(64)} == set(possible)


def test_the_seed_decides(folder: Path) -> None:
    text = " ".join(["{a|b|c|d}"] * 20)
    drawn = [draw(text, seed, Wildcards(folder)) for seed in range(50)]
    assert drawn == [draw(text, seed, Wildcards(folder)) for seed in range(50)]
    assert len(set(drawn)) == 50
    assert draw(text, 2**64 - 1, Wildcards(folder)) not in drawn


def test_choices_are_drawn_evenly(folder: Path) -> None:
    """4 choices, 4000 draws: each within 6 standard deviations (27.4) of 1000."""
    drawn = Counter(draw("{a|b|c|d}", seed, Wildcards(folder)) for seed in range(4000))
    assert len(drawn) == 4 and all(abs(count - 1000) < 6 * 27.4 for count in drawn.values())


def test_a_missing_name_says_where_it_was_looked_for_and_what_there_is(folder: Path) -> None:
    said = refusal("a __plant__", folder)
    assert "plant.txt" in said and str(folder) in said
    assert all(name in said for name in ("animal", "size", "deep/er/plant-1", "zh"))
    assert "There is: nothing" in refusal("__a__", folder / "absent")
    for number in range(30):
        write(folder, f"more/{number}.txt", "x")
    assert "and 14 more" in refusal("a __plant__", folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "/animal", "animal/", "deep//er/plant-1", "deep", "note"])
def test_no_name_leads_out_or_elsewhere(folder: Path, name: str) -> None:
    write(folder, "note.md", "x")
    assert str(folder) in refusal(f"__{name}__", folder)


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000 + "b"])
def test_a_name_that_no_file_can_have_is_missing(folder: Path, name: str) -> None:
    said = refusal(f"__{name}__", folder)
    assert "is no wildcard here" in said and "animal" in said and len(said) < 2000


def test_dots_are_no_part_of_a_name(folder: Path) -> None:
    write(folder.parent, "secret.txt", "secret")
    for text in ("__../secret__", "__./animal__", "__animal.txt__", "__..\\secret__"):
        assert draw(text, 1, Wildcards(folder)) == text


def test_links_are_followed_only_inside(folder: Path) -> None:
    write(folder.parent, "outside/secret.txt", "secret")
    for name, target in {"out": "../outside/secret.txt", "in": "animal.txt"}.items():
        os.symlink(target, folder / f"{name}.txt")
    os.symlink(folder.parent / "outside", folder / "linked")
    os.symlink("nowhere.txt", folder / "broken.txt")
    assert draw("__in__", 1, Wildcards(folder)) in ("cat", "dog")
    for name in ("out", "linked/secret", "broken"):
        listed = refusal(f"__{name}__", folder).partition("There is: ")[2].partition(". Make")[0]
        assert listed == "animal, deep/er/plant-1, in, size, zh"
    os.symlink(folder, folder.parent / "mine")  # the owner may keep the folder itself elsewhere
    assert draw("__animal__", 1, Wildcards(folder.parent / "mine")) in ("cat", "dog")


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    write(folder, "large.txt", "x" * 1_000_001)
    write(folder, "fits.txt", "x" * 1_000_000)
    write(folder, "empty.txt", "# nothing\n\n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    for name, reason in {"large": "1000000", "empty": "is empty", "latin": "UTF-8"}.items():
        said = refusal(f"__{name}__", folder)
        assert f"{name}.txt" in said and reason in said
    assert len(draw("__fits__", 1, Wildcards(folder))) == 1_000_000


def test_depth_and_number_have_an_end(folder: Path) -> None:
    write(folder, "self.txt", "again __self__")
    assert "__self__ > __self__" in refusal("__self__", folder)
    nested = "x"
    for _ in range(8):
        nested = f"{{{nested}|{nested}}}"
    assert draw(nested, 1, Wildcards(folder)) == "x"
    assert "8 deep" in refusal(f"{{{nested}|{nested}}}", folder)
    assert draw("{a|a}" * 100, 1, Wildcards(folder)) == "a" * 100
    assert "more than 100" in refusal("{a|a}" * 101, folder)


@pytest.mark.parametrize(
    "text", ["{" * 30_000, "{" * 30_000 + "}" * 30_000, "{|" * 30_000, "__a" * 30_000 + " ", "\\" * 100_000]
)
def test_no_text_takes_long(folder: Path, text: str) -> None:
    begun = time.process_time()
    try:
        draw(text, 1, Wildcards(folder))
    except WildcardError:
        pass
    assert time.process_time() - begun < 10


def test_the_state_changes_with_every_file(folder: Path) -> None:
    states = [Wildcards(folder).state()]
    write(folder, "animal.txt", "cat and dog")
    states.append(Wildcards(folder).state())
    write(folder, "new.txt", "x")
    states.append(Wildcards(folder).state())
    (folder / "new.txt").unlink()
    assert Wildcards(folder).state() == states[1] and len({json.dumps(state) for state in states}) == 3
