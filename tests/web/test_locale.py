"""Nodes show the texts of `locales/`, and their help pages, in the language of the page."""

import json
import re
from pathlib import Path

from playwright.sync_api import expect

from tests.host.server import PACK_ROOT
from tests.web.modes import in_languages_and_modes

NARROW = 242  # pixels: a help page of ComfyUI 0.3.75 on a screen 1280 wide
HIDDEN = """(page, width) => {
    page.style.width = `${width}px`
    const hidden = page.scrollWidth - page.clientWidth
    page.style.width = ""
    return hidden
}"""
HANGING = 8  # pixels that a mark at the end of a line may take of the margin


def texts_of(locale: str) -> dict[str, dict]:
    return json.loads((PACK_ROOT / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))


def labels(contract: dict, texts: dict, nodes_2: bool) -> set[str]:
    """What a node must show beside its values. In Nodes 2.0 some pages have no label over a long text."""
    inputs = {k: v for kind in ("required", "optional") for k, v in contract["input"].get(kind, {}).items()}
    long = {name for name, (_, *options) in inputs.items() if options and options[0].get("multiline")}
    return {texts["inputs"][name]["name"] for name in inputs if not (nodes_2 and name in long)} | {
        texts["outputs"][str(slot)]["name"] for slot in range(len(contract["output"]))
    }


@in_languages_and_modes
def test_titles_and_labels(open_page, our_nodes, locale, nodes_2):
    texts, comfy = texts_of(locale), open_page(locale, nodes_2)
    assert set(texts) == set(our_nodes)
    absent = {}
    for node_type, contract in our_nodes.items():
        wanted = {texts[node_type]["display_name"], *labels(contract, texts[node_type], nodes_2)}
        comfy.add_alone(node_type)
        absent[node_type] = comfy.never_shown(wanted)
    assert {node_type: texts for node_type, texts in absent.items() if texts} == {}


def beginning(page: Path) -> tuple[str, str]:
    """The heading and the first paragraph of a Markdown page, without the marks."""
    heading, paragraph = page.read_text(encoding="utf-8").split("\n\n")[:2]
    linked = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", paragraph)
    return heading.removeprefix("# "), re.sub(r"[`*]", "", linked)


@in_languages_and_modes
def test_help_panel(open_page, our_nodes, locale, nodes_2):
    comfy = open_page(locale, nodes_2)
    too_wide = {}
    for node_type in our_nodes:
        page = (
            PACK_ROOT / "web" / "docs" / (f"{node_type}.md" if locale == "en" else f"{node_type}/{locale}.md")
        )
        heading, paragraph = beginning(page)
        comfy.add_alone(node_type)
        comfy.page.get_by_test_id("info-button").click()
        help_page = comfy.page.locator(".node-help-content")
        expect(help_page.locator("h1")).to_have_text(heading)
        expect(help_page).to_contain_text(paragraph)
        hidden = help_page.evaluate(HIDDEN, NARROW)
        if hidden > HANGING:
            too_wide[node_type] = hidden
    assert too_wide == {}
