"""Texts that nodes make are shown on them after each run, are saved, and are not sent."""

from __future__ import annotations

import pytest

from tests.host import graphs
from tests.web.test_enhancer import SEND, SET, run_and_wait

TEXT = "a {red|green|blue} {apple|pear|plum}"
BOX = """([id, name]) => {
    const box = app.graph.getNodeById(id).widgets.find(widget => widget.name == name)
    return box.value
}"""
ADD = """([type, before, name]) => {
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    node.pos = [60, 640]
    node.setSize([420, node.size[1]])
    const target = app.graph.nodes.find(node => node.type == before)
    const slot = target.inputs.findIndex(input => input.name == name)
    node.connect(0, target, slot)
    app.canvas.ds.scale = 1
    app.canvas.centerOnNode(node)
    return node.id
}"""


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_the_drawn_text_is_shown_and_drawn_by_the_server(open_page, server, nodes_2):
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(graphs.ui_form("01 Text to image (nano demo)"))
    comfy.page.wait_for_function("app.graph.nodes.some(node => node.type == 'ZImageTextEncode')")
    node = comfy.page.evaluate(ADD, ["ZImageWildcards", "ZImageTextEncode", "text"])
    for name, value in {"text": TEXT, "seed": 2 if nodes_2 else 1}.items():
        comfy.page.evaluate(SET, [node, name, value])
    sent = comfy.page.evaluate(SEND, node)
    assert sent["text"] == TEXT and sent["drawn"] == ""
    made = run_and_wait(comfy, server)["outputs"][str(node)]["drawn"][0]
    comfy.page.wait_for_function(
        "([id, text]) => app.graph.getNodeById(id).widgets.some(widget => widget.value == text)",
        arg=[node, made],
    )
    assert "{" not in made and comfy.page.evaluate(BOX, [node, "text"]) == TEXT
    assert comfy.page.evaluate(SEND, node)["drawn"] == "", "a shown text must not make the run a new one"
    (saved,) = [entry for entry in comfy.graph()["nodes"] if entry["type"] == "ZImageWildcards"]
    assert saved["widgets_values"][0] == TEXT and saved["widgets_values"][3] == made
    box = comfy.page.locator("textarea").and_(comfy.page.locator("[readonly]"))
    assert made in [area.input_value() for area in box.all()]
