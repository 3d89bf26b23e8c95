"""README.md and README.zh.md say the same: headings, tables with their figures, code, working links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "README.zh.md")
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in PAGES)
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


@pytest.mark.parametrize("part", [headings, rows, code, commands])
def test_both_languages_have_the_same(part):
    assert part(CHINESE) == part(ENGLISH)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [target for target in PAGES if target != name][0] in targets
    assert not [target for target in targets if not (ROOT / target).exists()]
