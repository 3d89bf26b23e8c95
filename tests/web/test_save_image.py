"""Pictures that our node saved are seen on it, and bring their graph back when dropped on the page."""

from __future__ import annotations

import pytest

from tests.host import graphs
from tests.web.test_enhancer import SET, run_and_wait

KINDS = {"png": "image/png", "webp": "image/webp"}
ADD_SAVER = """() => {
    const decode = app.graph.nodes.find(node => node.type == "VAEDecode")
    const node = LiteGraph.createNode("ZImageSaveImage")
    app.graph.add(node)
    node.pos = [decode.pos[0], decode.pos[1] + 300]
    node.setSize([400, 420])
    decode.connect(0, node, 0)
    app.graph.remove(app.graph.nodes.find(node => node.type == "SaveImage"))
    app.canvas.ds.scale = 1
    app.canvas.centerOnNode(node)
    return node.id
}"""
PROMPT = """() => app.graph.nodes.find(node => node.type == "ZImageTextEncode")
    ?.widgets.find(widget => widget.name == "text").value"""


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_pictures_are_shown_and_bring_their_graph_back(open_page, server, nodes_2):
    kind = "webp" if nodes_2 else "png"
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(graphs.ui_form("01 Text to image (nano demo)"))
    comfy.page.wait_for_function("app.graph.nodes.some(node => node.type == 'VAEDecode')")
    saver = comfy.page.evaluate(ADD_SAVER)
    comfy.page.evaluate(SET, [saver, "format", kind])
    (entry,) = run_and_wait(comfy, server)["outputs"][str(saver)]["images"]
    comfy.bring_into_view(saver)
    for _ in range(100):
        if any("/view?" in address for address in comfy.pictures(saver)):
            break
        comfy.page.wait_for_timeout(200)
    assert any(entry["filename"] in address for address in comfy.pictures(saver))
    content = server.view(entry)
    assert (b"parameters\0" in content) == (kind == "png")
    comfy.clear()
    comfy.drop(entry["filename"], KINDS[kind], content)
    comfy.page.wait_for_function("app.graph.nodes.some(node => node.type == 'ZImageSaveImage')")
    assert comfy.page.evaluate(PROMPT) == "a red apple on a white background"
