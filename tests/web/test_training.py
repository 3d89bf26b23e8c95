"""The training node shows its curve, its samples and what it says, while it runs and afterwards."""

import re

import pytest
from playwright.sync_api import expect

from tests.host import graphs
from tests.web.test_edit import LOOK_AT
from tests.web.test_running import ids_of, wait_for_picture

NAME = "23 Train a LoRA (nano demo)"


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_curve_and_samples_are_on_the_node(open_page, nodes_2):
    workflow = graphs.short_form(NAME)
    graphs.set_widget(workflow, "ZImageTrainLora", 0, f"page {nodes_2}")
    (train,), (save,) = ids_of(workflow, "ZImageTrainLora"), ids_of(workflow, "SaveImage")
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(workflow)
    panel = comfy.page.get_by_test_id("zimage-training")
    expect(panel).to_be_hidden()
    comfy.run()
    wait_for_picture(comfy, save)
    comfy.page.evaluate(LOOK_AT, train)
    comfy.wait_until_at_rest()
    expect(panel).to_be_visible()
    expect(panel).to_contain_text("4 / 4")
    assert len(panel.locator("polyline").get_attribute("points").split()) == 4
    samples = panel.locator("img")
    expect(samples).to_have_count(2)
    for number in range(2):
        handle = samples.nth(number).element_handle()
        comfy.page.wait_for_function("image => image.naturalWidth == 128", arg=handle)
    box = panel.bounding_box()
    assert box["width"] > 100 and box["height"] > 100
    assert comfy.overlapping() == []
    kept = next(node for node in comfy.graph()["nodes"] if node["id"] == train)["widgets_values"]
    saved = next(node for node in workflow["nodes"] if node["id"] == train)["widgets_values"]
    assert kept[: len(saved)] == saved  # some pages append the text that they show under a node


def test_cancel_and_what_goes_on_are_said_on_the_node(open_page, server):
    workflow = graphs.short_form(NAME)
    for number, value in ((0, "page cancelled"), (2, 5000)):
        graphs.set_widget(workflow, "ZImageTrainLora", number, value)
    comfy = open_page()
    comfy.load(workflow)
    panel = comfy.page.get_by_test_id("zimage-training")
    comfy.run()
    expect(panel).to_contain_text(re.compile(r"step \d+ / 5000 . loss .* time left"))
    assert "went on" not in panel.inner_text()
    server.interrupt()
    expect(panel).to_contain_text("Cancelled; Run goes on from here: step ")
    comfy.run()
    expect(panel).to_contain_text(re.compile(r"went on from step [1-9]"))
    server.interrupt()
    expect(panel).to_contain_text("Cancelled")
