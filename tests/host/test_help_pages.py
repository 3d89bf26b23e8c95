"""Every node has a help page in both languages, where the page looks for it, and it explains every input."""

import json
import re

import pytest

from tests.contracts.object_info import NODES, inputs, load
from tests.host.server import PACK_NAME, PACK_ROOT

CONTRACTS = load(NODES)
DOCS = PACK_ROOT / "web" / "docs"
PAGES = {"en": "{}.md", "zh": "{}/zh.md"}


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("language", PAGES)
def test_page_is_served_and_names_every_input(server, language, name):
    path = PAGES[language].format(name)
    text = server.get(f"/extensions/{PACK_NAME}/docs/{path}").decode()
    texts = json.loads((PACK_ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[name]
    assert text.startswith(f"# {texts['display_name']}\n")
    for key in inputs(CONTRACTS[name]):
        assert key in text
        assert texts["inputs"][key]["name"] in text, "the name that the page shows"


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_page_is_read_in_a_narrow_panel(path):
    """The side panel is 300 pixels wide: no tables, and each input has a paragraph of its own."""
    text, name = path.read_text(encoding="utf-8"), path.stem if path.stem != "zh" else path.parent.name
    assert not re.search(r"^\s*\|", text, re.MULTILINE)
    started = [re.match(r"\*\*(.+?)\*\*(?: ?[(\uff08]|: |\uff1a)", part) for part in text.split("\n\n")]
    labels = {label[1].split("`")[1] if "`" in label[1] else label[1] for label in started if label}
    assert set(inputs(CONTRACTS[name])) <= labels


@pytest.mark.parametrize("path", sorted(DOCS.glob("*/zh.md")), ids=lambda path: path.parent.name)
def test_no_line_ends_between_chinese_letters(path):
    """The page would show a space there."""
    letter = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"
    assert not re.findall(f"{letter}\n{letter}", path.read_text(encoding="utf-8"))


def test_there_is_no_page_without_a_node():
    known = {pattern.format(name) for pattern in PAGES.values() for name in CONTRACTS}
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} == known
