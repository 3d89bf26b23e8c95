"""The screenshots of the READMEs, made anew: `python dev.py test --web tests/web/readme_pictures.py`.

Not a part of the tests by its name. Nothing is written that is larger than LARGEST.
"""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from tests.host import graphs
from tests.web.test_running import ids_of, wait_for_picture

DOCS = Path(__file__).resolve().parents[2] / "docs"
LARGEST = 400_000  # bytes
PICTURES = {  # file -> the workflow, and the node that shows its result
    "text_to_image": ("01 Text to image (nano demo)", "SaveImage"),
    "edit": ("03 Edit by instruction (nano demo)", "SaveImage"),
}
MUTED = 2
# the map in the corner, the bars over the canvas, and what is told of a run
HIDDEN = """
    .p-toast, [class*=minimap], .subgraph-breadcrumb, .side-tool-bar-container, [class*=actionbar],
    [class*=queue-], [class*=top-menu], .graph-canvas-panel > :not(canvas), .bg-comfy-menu-bg {
        visibility: hidden !important
    }
"""
AROUND = 40  # pixels of canvas beside the graph
FIT = """() => {
    const [left, top, right, bottom] = app.graph.nodes.reduce(([a, b, c, d], {pos, size}) => [
        Math.min(a, pos[0]), Math.min(b, pos[1] - 30),
        Math.max(c, pos[0] + size[0]), Math.max(d, pos[1] + size[1]),
    ], [Infinity, Infinity, -Infinity, -Infinity])
    const scale = Math.min(1460 / (right - left), 900 / (bottom - top), 1.2)
    Object.assign(app.canvas.ds, {scale, offset: [(90 / scale) - left, (90 / scale) - top]})
    app.canvas.setDirty(true, true)
    return [(right - left) * scale, (bottom - top) * scale]
}"""


@pytest.mark.parametrize("file", PICTURES)
def test_screenshot(open_page, file: str) -> None:
    name, output = PICTURES[file]
    workflow = graphs.ui_form(name)
    shown = [node for node in workflow["nodes"] if node["mode"] != MUTED and node["type"] != "MarkdownNote"]
    comfy = open_page(nodes_2=True, advanced=False)
    comfy.load({**workflow, "nodes": shown})
    comfy.run()
    for node_id in ids_of(workflow, output):
        wait_for_picture(comfy, node_id)
    comfy.page.add_style_tag(content=HIDDEN)
    width, height = comfy.page.evaluate(FIT)
    comfy.page.wait_for_timeout(9000)  # until what is told of the run has gone
    clip = {"x": 90 - AROUND, "y": 90 - AROUND, "width": width + 2 * AROUND, "height": height + 2 * AROUND}
    shot = Image.open(io.BytesIO(comfy.page.screenshot(clip=clip))).convert("RGB")
    path = DOCS / f"{file}.png"
    shot.save(path, optimize=True)
    assert path.stat().st_size <= LARGEST
