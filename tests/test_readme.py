"""Pages in two languages say the same: headings, tables with their figures, code, working links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAIRS = [
    (str(page.relative_to(ROOT).with_suffix("").with_suffix(".md")), str(page.relative_to(ROOT)))
    for page in (ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.zh.md")))
]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile("`.+?`", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def headings(page: str) -> list[int]:
    """The levels, in their order."""
    return [len(mark) for mark in re.findall(r"^(#+) ", FENCED.sub("", page), re.MULTILINE)]


def rows(page: str) -> list[tuple[list[str], list[str]]]:
    """What no language changes in each table row: code, and figures outside of it."""
    lines = [line for line in FENCED.sub("", page).splitlines() if line.startswith("|")]
    return [(sorted(CODE.findall(row)), sorted(NUMBER.findall(CODE.sub("", row)))) for row in lines]


def code(page: str) -> list[str]:
    """Names and commands in the text."""
    return sorted(set(CODE.findall(FENCED.sub("", page))))


def commands(page: str) -> list[str]:
    """Code blocks without comments and explanations."""
    return [re.split(r"  +", line)[0] for block in FENCED.findall(page) for line in block.splitlines()]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("part", [headings, rows, code, commands])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_both_languages_have_the_same(pair, part):
    english, chinese = map(text, pair)
    assert part(chinese) == part(english)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_links_lead_somewhere(pair):
    for name, other in (pair, pair[::-1]):
        targets = re.findall(r"\]\((?!https?:)([^)#]+)", text(name))
        assert Path(other).name in targets
        assert not [target for target in targets if not (ROOT / name).parent.joinpath(target).exists()]


def test_the_readme_is_for_users():
    assert len(text("README.md").splitlines()) <= 110


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_lists_each_template_once(name):
    titles = [line.split("|")[1] for line in text(name).splitlines() if re.match(r"\| `\d\d ", line)]
    there = {file.stem.removesuffix(" (nano demo)") for file in (ROOT / "workflows").glob("*.json")}
    assert re.findall(r"`(.+?)`", "".join(titles)) == sorted(there)
