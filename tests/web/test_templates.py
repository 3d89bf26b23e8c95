"""Each shipped workflow opens from the template browser as it was saved."""

import pytest
from playwright.sync_api import expect

from templates.make import SUFFIXES
from tests.host import graphs
from tests.host.server import PACK_NAME
from tests.long import LONG
from tests.web.comfy_page import ComfyPage

DEMOS = [name for name in graphs.NAMES if name.endswith(SUFFIXES["nano"])]
OTHERS = sorted(set(graphs.NAMES) - set(DEMOS))
# Between them they ask for every file.
FEW = {"01 Text to image", "06 Control by edges", "15 Base with guidance", "17 Accelerate"}
AT_ONCE = 8  # templates on one page


def content(workflow: dict) -> tuple[dict, set]:
    """What a workflow says, without where it lies: its nodes with their values, and its links."""
    nodes = {str(node["id"]): (node["type"], node.get("widgets_values") or []) for node in workflow["nodes"]}
    return nodes, {tuple(map(str, link[1:])) for link in workflow["links"]}


def open_template(comfy: ComfyPage, name: str) -> None:
    """Choose it in the template browser, which shows more cards as one scrolls."""
    comfy.sidebar("Templates")
    browser = comfy.page.get_by_role("dialog")
    browser.get_by_text(PACK_NAME, exact=True).click()
    cards = browser.locator("[data-testid^=template-workflow-]")
    cards.first.wait_for()
    card = browser.get_by_test_id(f"template-workflow-{name}")
    while not card.count():
        shown = cards.count()
        cards.last.scroll_into_view_if_needed()
        expect(cards).not_to_have_count(shown)
    card.scroll_into_view_if_needed()
    thumbnail = card.locator("img").element_handle()
    comfy.page.wait_for_function("image => image.naturalWidth > 0", arg=thumbnail)
    card.click()
    expect(browser).to_be_hidden()
    shipped = graphs.ui_form(name)
    comfy.page.wait_for_function("id => app.graph.id == id", arg=shipped["id"])
    expect(comfy.page).to_have_title(f"*{name} - ComfyUI")
    assert content(comfy.graph()) == content(shipped)
    comfy.wait_until_at_rest()


@pytest.mark.parametrize("first", range(0, len(DEMOS), AT_ONCE))
def test_demos_open_from_the_template_browser(open_page, first):
    comfy = open_page(nodes_2=True)
    for name in DEMOS[first : first + AT_ONCE]:
        open_template(comfy, name)
        expect(comfy.alarm).to_have_count(0)
        assert comfy.overlapping() == []


@pytest.mark.parametrize("name", OTHERS if LONG else sorted(FEW))
def test_full_size_offers_the_files_that_are_missing(open_page, name):
    comfy = open_page()
    open_template(comfy, name)
    report = comfy.what_went_wrong()
    for model in graphs.models_needed(graphs.ui_form(name)):
        expect(report).to_contain_text(model)
    expect(report).not_to_contain_text(comfy.frontend.missing_nodes)


@pytest.mark.parametrize(("locale", "label"), [("en", "Templates"), ("zh", "\u6a21\u677f")])
def test_cards_are_in_the_order_of_their_numbers(open_page, locale, label):
    comfy = open_page(locale)
    comfy.sidebar(label)
    browser = comfy.page.get_by_role("dialog")
    browser.get_by_text(PACK_NAME, exact=True).click()
    cards = browser.locator("[data-testid^=template-workflow-]")
    expect(cards.first).to_contain_text("01")
    names = [card.get_attribute("data-testid").removeprefix("template-workflow-") for card in cards.all()]
    assert names == sorted(graphs.NAMES)[: len(names)] and len(names) > 3


def test_a_missing_node_would_be_announced(open_page):
    """The alarm that the other test finds absent."""
    comfy = open_page()
    workflow = graphs.ui_form("01 Text to image (nano demo)")
    workflow["nodes"][0]["type"] = "ZImageOfTheFuture"
    comfy.load(workflow)
    expect(comfy.what_went_wrong()).to_contain_text(comfy.frontend.missing_nodes)


def test_a_dropped_picture_restores_its_graph(open_page, server):
    workflow = graphs.ui_form("01 Text to image (nano demo)")
    graphs.set_widget(workflow, "ZImageTextEncode", 0, "a green pear")
    graphs.set_widget(workflow, "ZImageTurboSampler", 2, 2)
    result = server.run(graphs.to_api(workflow, server.object_info()), workflow)
    (picture,) = next(output["images"] for output in result.outputs.values() if output.get("images"))
    comfy = open_page()
    comfy.drop(picture["filename"], "image/png", server.view(picture))
    comfy.page.wait_for_function("app.graph.nodes.some(node => node.type == 'ZImageTextEncode')")
    assert content(comfy.graph()) == content(workflow)
    comfy.wait_until_at_rest()
    expect(comfy.alarm).to_have_count(0)
