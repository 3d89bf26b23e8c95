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


def anchors(page: str) -> set[str]:
    """Those that GitHub gives the headings."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(page: Path) -> list[str]:
    broken = []
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", page.read_text(encoding="utf-8"))
    for link in filter(None, (link for pair in links for link in pair)):
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if link.startswith(("http:", "https:")):
            continue
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0])
def test_both_languages_lead_to_each_other(pair):
    for name, other in (pair, pair[::-1]):
        assert f"]({Path(other).name})" in text(name)


@pytest.mark.parametrize("folder", [".", "docs", "models", "web/docs"])
def test_links_lead_somewhere(folder):
    pages = (ROOT / folder).glob("*.md") if folder == "." else (ROOT / folder).rglob("*.md")
    broken = {str(page.relative_to(ROOT)): found for page in pages if (found := broken_links(page))}
    assert broken == {}


def test_a_broken_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('# A title, here\n[a](#a-title-here) [b](#other) [c](none.md) <img src="x.png">', "utf-8")
    assert broken_links(page) == ["#other", "none.md", "x.png"]


def test_the_readme_is_for_users():
    assert len(text("README.md").splitlines()) <= 110


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_lists_each_template_once(name):
    titles = [line.split("|")[1] for line in text(name).splitlines() if re.match(r"\| `\d\d ", line)]
    there = {file.stem.removesuffix(" (nano demo)") for file in (ROOT / "workflows").glob("*.json")}
    assert re.findall(r"`(.+?)`", "".join(titles)) == sorted(there)
