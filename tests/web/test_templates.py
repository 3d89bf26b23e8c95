"""Each shipped workflow opens from the template browser as it was saved."""

import pytest
from playwright.sync_api import expect

from tests.host import graphs
from tests.host.server import PACK_NAME


def content(workflow: dict) -> tuple[dict, set]:
    """What a workflow says, without where it lies: its nodes with their values, and its links."""
    nodes = {str(node["id"]): (node["type"], node.get("widgets_values") or []) for node in workflow["nodes"]}
    return nodes, {tuple(map(str, link[1:])) for link in workflow["links"]}


@pytest.mark.parametrize("name", graphs.NAMES)
def test_opens_from_the_template_browser(open_page, name):
    comfy = open_page()
    comfy.sidebar("Templates")
    browser = comfy.page.get_by_role("dialog")
    browser.get_by_text(PACK_NAME, exact=True).click()
    card = browser.get_by_test_id(f"template-workflow-{name}")
    card.scroll_into_view_if_needed()
    thumbnail = card.locator("img").element_handle()
    comfy.page.wait_for_function("image => image.naturalWidth > 0", arg=thumbnail)
    card.click()
    expect(browser).to_be_hidden()
    shipped = graphs.ui_form(name)
    comfy.page.wait_for_function("count => app.graph.nodes.length == count", arg=len(shipped["nodes"]))
    expect(comfy.page).to_have_title(f"*{name} - ComfyUI")
    assert content(comfy.graph()) == content(shipped)
    comfy.wait_until_at_rest()
    needed = graphs.models_needed(shipped)  # those that are not here are offered for download
    if needed:
        report = comfy.what_went_wrong()
        for model in needed:
            expect(report).to_contain_text(model)
        expect(report).not_to_contain_text(comfy.frontend.missing_nodes)
    else:
        expect(comfy.alarm).to_have_count(0)


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
