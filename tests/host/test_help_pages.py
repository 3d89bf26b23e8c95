"""Every node has a help page in both languages, where the page looks for it, and it explains every input."""

import json

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


def test_there_is_no_page_without_a_node():
    known = {pattern.format(name) for pattern in PAGES.values() for name in CONTRACTS}
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} == known
