"""The edit node shows its picture before and after, and a drag moves the line between them."""

import pytest
from playwright.sync_api import expect

from tests.host import graphs
from tests.web.test_running import SEEDS, ids_of, wait_for_picture

SHARE = """box => {
    const [, before] = box.querySelectorAll("img")
    return 1 - parseFloat(getComputedStyle(before).clipPath.split(" ")[1]) / 100
}"""
LOOK_AT = """id => {
    app.canvas.ds.scale = 0.7
    app.canvas.centerOnNode(app.graph.nodes.find(node => node.id == id))
    app.canvas.setDirty(true, true)
}"""


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_before_and_after(open_page, nodes_2):
    workflow = graphs.ui_form("03 Edit by instruction (nano demo)")
    graphs.set_widget(workflow, "ZImageEdit", 4, next(SEEDS))
    graphs.set_widget(workflow, "ZImageEdit", 5, "fixed")
    (save,), (edit,) = ids_of(workflow, "SaveImage"), ids_of(workflow, "ZImageEdit")
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(workflow)
    box = comfy.page.get_by_test_id("zimage-before-after")
    expect(box).to_be_hidden()
    comfy.run()
    wait_for_picture(comfy, save)
    comfy.page.evaluate(LOOK_AT, edit)
    comfy.wait_until_at_rest()
    expect(box).to_be_visible()
    pictures = box.locator("img")
    for number in range(2):
        handle = pictures.nth(number).element_handle()
        comfy.page.wait_for_function("image => image.naturalWidth == 128", arg=handle)
    assert len({picture.get_attribute("src") for picture in pictures.all()}) == 2
    unfinished = [address for address in comfy.pictures(edit) if address.startswith("blob:")]
    assert unfinished == [], "the blurred picture of the run is still there"

    place = box.bounding_box()
    assert place["width"] > 100 and place["height"] > 100
    assert box.evaluate(SHARE) == pytest.approx(0.5)
    before = positions(comfy)
    middle = place["y"] + place["height"] / 2
    comfy.page.mouse.move(place["x"] + 0.5 * place["width"], middle)
    comfy.page.mouse.down()
    comfy.page.mouse.move(place["x"] + 0.2 * place["width"], middle, steps=5)
    comfy.page.mouse.up()
    dragged = box.evaluate(SHARE)
    assert dragged == pytest.approx(0.2, abs=0.05)
    comfy.page.keyboard.press("ArrowRight")
    assert box.evaluate(SHARE) > dragged
    assert positions(comfy) == before, "the drag moved a node"

    kept = next(node for node in comfy.graph()["nodes"] if node["id"] == edit)["widgets_values"]
    saved = next(node for node in workflow["nodes"] if node["id"] == edit)["widgets_values"]
    assert kept[: len(saved)] == saved  # some pages append the text that they show under a node


def positions(comfy) -> dict[int, list]:
    return {node["id"]: node["pos"] for node in comfy.graph()["nodes"]}
