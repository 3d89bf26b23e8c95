"""Styles are words: how they are joined to a prompt, and what files of them may hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from zimage_core.prompt.language import language_of
from zimage_core.prompt.styles import StyleError, built_in, in_style, read_styles

CASES = json.loads(Path(__file__).with_name("styles.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("text", "position", "expected"), CASES["joined"])
def test_the_prompt_stays_and_gets_words_in_its_language(text: str, position: str, expected: str) -> None:
    assert in_style(text, CASES["words"], position) == expected


def test_about_sixty_styles_come_along_in_both_languages() -> None:
    styles = built_in()
    assert 55 <= len(styles) <= 70
    for language in ("en", "zh"):
        words = [style[language] for style in styles.values()]
        assert len(set(words)) == len(styles)
        assert [text for text in words if language_of(text) != language] == []
        assert [text for text in words if text != text.strip(" .,\u3002\uff0c")] == []
    assert [name for name in styles if not re.fullmatch(r"[A-Za-z0-9 ,]+", name)] == []


def test_own_files(tmp_path: Path) -> None:
    file = tmp_path / "styles.json"
    file.write_text(json.dumps(CASES["own"]), encoding="utf-8-sig")
    (own,) = set(CASES["own"]) - {"plain", "both"}
    (ink,) = CASES["own"][own].values()
    assert read_styles(file) == {
        "plain": {"en": "grey", "zh": "grey"},
        "both": CASES["own"]["both"],
        own: {"en": ink, "zh": ink},
    }


@pytest.mark.parametrize(
    "text, reasons",
    [
        ("{", ["no JSON", "line 1"]),
        ("", ["no JSON"]),
        ("[" * 100_000, ["no JSON"]),
        ('{"a": 1' + "0" * 5000 + "}", ["no JSON"]),
        ("[]", ["list", "expected an object"]),
        ('{"a": 1}', ["'a'", "is 1", "words"]),
        ('{"a": {}}', ["'a'"]),
        ('{"a": {"de": "x"}}', ["'a'", "de"]),
        ('{"a": {"en": ""}}', ["'a'", "no words in 'en'"]),
        ('{"a": {"en": "x", "zh": 3}}', ["'a'", "no words in 'zh'"]),
        ('{"a": ""}', ["'a'"]),
        ('{" ": "x"}', ["' '"]),
        ('{"a": "' + "x" * 1_000_000 + '"}', ["1000009 bytes", "1000000"]),
    ],
    ids=range(13),
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: str, reasons: list[str]) -> None:
    file = tmp_path / "styles.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(StyleError) as error:
        read_styles(file)
    assert all(reason in str(error.value) for reason in (str(file), *reasons)), str(error.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "styles.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(StyleError, match="no JSON text"):
        read_styles(tmp_path / "styles.json")
