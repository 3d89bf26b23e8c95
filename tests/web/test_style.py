"""The style node's list can be searched, and shows the words of what is chosen before anything runs."""

from __future__ import annotations

import json

import pytest

from tests.host import graphs
from tests.host.server import PACK_ROOT
from tests.web.modes import in_languages_and_modes
from tests.web.test_enhancer import boxes
from tests.web.test_running import SEEDS, ids_of, wait_for_picture

STYLES = json.loads((PACK_ROOT / "zimage_core" / "prompt" / "styles.json").read_text(encoding="utf-8"))
CHINESE = json.loads((PACK_ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
LABELS = CHINESE["ZImageStyle"]["inputs"]["style"]["options"]
VALUES = """name => app.graph.nodes.find(node => node.type == "ZImageStyle")
    .widgets.find(widget => widget.name == name).value"""
SET_TEXT = """text => {
    const node = app.graph.nodes.find(node => node.type == "ZImageStyle")
    node.widgets.find(widget => widget.name == "text").value = text
}"""
ON_LIST = """() => {
    const node = app.graph.nodes.find(node => node.type == "ZImageStyle")
    const list = node.widgets.find(widget => widget.name == "style")
    return app.canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + list.last_y + 10])
}"""


def choose(comfy, looked_for: str, name: str) -> None:
    """Open the list, type, and click on what is found."""
    if comfy.nodes_2:
        comfy.page.locator(".lg-node [role=combobox], .lg-node .p-select").first.click()
    else:
        comfy.page.mouse.click(*comfy.page.evaluate(ON_LIST))
    search = comfy.page.locator(
        ".litecontextmenu input, input[role=searchbox], .p-select-filter, [role=dialog] input"
    )
    if search.count() or not comfy.nodes_2:
        search.first.fill(looked_for)
    comfy.page.get_by_text(name, exact=True).last.click()


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_styles_are_searched_and_their_words_shown(open_page, nodes_2):
    comfy = open_page(nodes_2=nodes_2)
    comfy.add_alone("ZImageStyle")
    first = next(iter(STYLES))
    assert comfy.page.evaluate(VALUES, "styled") == STYLES[first]["en"]
    choose(comfy, "ink wash", "painting, ink wash")
    assert comfy.page.evaluate(VALUES, "style") == "painting, ink wash"
    assert comfy.page.evaluate(VALUES, "styled") == STYLES["painting, ink wash"]["en"]
    comfy.page.evaluate(SET_TEXT, "\u4e00\u53ea\u72d0\u72f8")
    choose(comfy, "comic", "illustration, comic")
    assert comfy.page.evaluate(VALUES, "styled") == STYLES["illustration, comic"]["zh"]
    sent = comfy.page.evaluate("async () => Object.values((await app.graphToPrompt()).output)[0].inputs")
    assert sent["styled"] == "" and sent["style"] == "illustration, comic"


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_chinese_names_are_shown_and_searched(open_page, nodes_2):
    comfy = open_page("zh", nodes_2)
    comfy.add_alone("ZImageStyle")
    assert comfy.page.evaluate(VALUES, "styled") == STYLES[next(iter(STYLES))]["zh"]
    names = ("painting, ink wash", "illustration, comic")
    shown = comfy.frontend.option_labels or not nodes_2
    ink, comic = (LABELS[name] if shown else name for name in names)
    choose(comfy, ink[:2] if shown else ink, ink)
    assert comfy.page.evaluate(VALUES, "style") == "painting, ink wash"
    choose(comfy, comic, comic)
    assert comfy.page.evaluate(VALUES, "styled") == STYLES["illustration, comic"]["zh"]


@in_languages_and_modes
def test_the_template_shows_its_words_and_then_its_picture(open_page, locale, nodes_2):
    """Its files are not here: nano draws in their place."""
    workflow = graphs.ui_form("19 Style")
    for slot in range(3):
        graphs.set_widget(workflow, "ZImageLoader", slot, "built-in: nano")
    graphs.set_widget(workflow, "ZImageLatent", 0, "128x128 (nano)")
    graphs.set_widget(workflow, "ZImageTurboSampler", 0, next(SEEDS))
    # of a node whose result is remembered the host tells a page nothing, unless it is the last of a graph
    graphs.set_widget(workflow, "ZImageStyle", 0, f"Owl number {next(SEEDS)} sits on a branch")
    (save,) = ids_of(workflow, "SaveImage")
    comfy = open_page(locale, nodes_2, advanced=False)
    comfy.load(workflow)
    comfy.page.wait_for_function("id => app.graph.getNodeById(id)", arg=save)
    comfy.wait_until_at_rest()
    words = STYLES["painting, watercolour"]["en"]
    assert words in boxes(comfy), "before anything runs"
    comfy.run()
    wait_for_picture(comfy, save)
    comfy.bring_into_view(*ids_of(workflow, "ZImageStyle"))  # Nodes 2.0 draws what is in view
    whole = """words => [...document.querySelectorAll("textarea")].some(
        ({value}) => value.endsWith(words) && value != words)"""
    comfy.page.wait_for_function(whole, arg=words)
    assert comfy.overlapping() == []
