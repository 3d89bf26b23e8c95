"""A picture and a mask of one's own go into the demos of Edit and Inpaint as their notes say."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from tests.host import graphs
from tests.web.comfy_page import ComfyPage
from tests.web.modes import in_languages_and_modes
from tests.web.test_running import ids_of, wait_for_picture

WIDTH, HEIGHT = 512, 384  # not what the model draws
SKY, DISC = (60, 110, 200), (210, 40, 40)
NEAR = 12  # of 255: the picture was scaled
ALWAYS_ON, MUTED = 0, 2
MASK_EDITOR = re.compile("^Open in MaskEditor")  # in the menu of a canvas, in each language
MASK_SYMBOL = "[class*=selection-toolbox] button:not([data-testid])"
SAVE = re.compile("Save|\u4fdd\u5b58")
TITLE = """id => {
    const node = app.graph.getNodeById(id)
    return app.canvas.convertOffsetToCanvas([node.pos[0] + 80, node.pos[1] - 15])
}"""
SOCKET = """([id, isInput, index]) => app.canvas.convertOffsetToCanvas(
    [...app.graph.getNodeById(id).getConnectionPos(isInput, index)])"""
SOCKETS = """([id, isInput]) => {
    const node = app.graph.getNodeById(id)
    return (isInput ? node.inputs : node.outputs).map(socket => socket.name)
}"""
ORIGIN = """([id, index]) => {
    const {links, nodes} = app.graph.serialize()
    const {link} = nodes.find(node => node.id == id).inputs[index]
    return links.find(([number]) => number == link)?.slice(1, 3)
}"""
FILE = "id => app.graph.getNodeById(id).widgets.find(widget => widget.name == 'image').value"
UPLOAD = """id => {
    const node = app.graph.getNodeById(id)
    const button = node.widgets.find(widget => widget.name == "upload")
    const middle = [node.pos[0] + node.size[0] / 2, node.pos[1] + button.last_y + 10]
    return app.canvas.convertOffsetToCanvas(middle)
}"""
# On the canvas of the mask editor that lies on top.
PAINTED = """() => [...document.querySelectorAll("canvas")].map(canvas => canvas.getBoundingClientRect())
    .findLast(box => box.width > 200 && box.width < innerWidth && box.height > 200)"""


def own_picture() -> bytes:
    picture = Image.new("RGB", (WIDTH, HEIGHT), SKY)
    ImageDraw.Draw(picture).ellipse((156, 92, 356, 292), fill=DISC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def turn_on(comfy: ComfyPage, node_id: int) -> None:
    comfy.page.mouse.click(*comfy.page.evaluate(TITLE, node_id))
    comfy.page.keyboard.press("Control+m")
    comfy.page.wait_for_function(f"id => app.graph.getNodeById(id).mode == {ALWAYS_ON}", arg=node_id)


def upload(comfy: ComfyPage, node_id: int, name: str) -> None:
    file = {"name": name, "mimeType": "image/png", "buffer": own_picture()}
    if comfy.nodes_2:
        comfy.node(node_id).locator("input[type=file]").first.set_input_files(file)
    else:
        with comfy.page.expect_file_chooser() as chooser:
            comfy.page.mouse.click(*comfy.page.evaluate(UPLOAD, node_id))
        chooser.value.set_files(file)
    comfy.page.wait_for_function(f"([id, name]) => ({FILE})(id) == name", arg=[node_id, name])


def paint_mask(comfy: ComfyPage, node_id: int) -> None:
    """Across the middle of the picture."""
    before = comfy.page.evaluate(FILE, node_id)
    if comfy.nodes_2:  # an older page has it above the node alone
        comfy.page.locator(MASK_SYMBOL).click()
    else:
        comfy.page.mouse.click(*comfy.page.evaluate(TITLE, node_id), button="right")
        comfy.page.get_by_text(MASK_EDITOR).last.click()
    comfy.page.wait_for_function(PAINTED)
    comfy.page.wait_for_timeout(1500)  # until the picture is in it
    box = comfy.page.evaluate(PAINTED)
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    comfy.page.mouse.move(x - 90, y)
    comfy.page.mouse.down()
    for across in (90, -90, 90):
        comfy.page.mouse.move(x + across, y, steps=10)
    comfy.page.mouse.up()
    comfy.page.get_by_role("button", name=SAVE).last.click()
    comfy.page.wait_for_function(f"([id, name]) => ({FILE})(id) != name", arg=[node_id, before])


def connect(comfy: ComfyPage, source: int, output: str, target: int, name: str) -> None:
    """Drag from an output to an input."""
    ends = []
    for node_id, is_input, wanted in ((source, False, output), (target, True, name)):
        index = comfy.page.evaluate(SOCKETS, [node_id, is_input]).index(wanted)
        ends.append((node_id, is_input, index))
    places = [socket_place(comfy, *end) for end in ends]
    comfy.page.mouse.move(*places[0])
    comfy.page.mouse.down()
    comfy.page.mouse.move(*(sum(both) / 2 for both in zip(*places, strict=True)), steps=5)
    comfy.page.mouse.move(*places[1], steps=5)
    comfy.page.mouse.up()
    (_, _, out_slot), (_, _, in_slot) = ends
    linked = f"([id, index, source, slot]) => String(({ORIGIN})([id, index])) == [source, slot]"
    comfy.page.wait_for_function(linked, arg=[target, in_slot, source, out_slot])


def socket_place(comfy: ComfyPage, node_id: int, is_input: bool, index: int) -> tuple[float, float]:
    if not comfy.nodes_2:
        return tuple(comfy.page.evaluate(SOCKET, [node_id, is_input, index]))
    key = f"{node_id}-{'in' if is_input else 'out'}-{index}"
    box = comfy.node(node_id).locator(f"[data-slot-key='{key}']").first.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@in_languages_and_modes
@pytest.mark.parametrize(
    ("name", "edit_title"), [("03 Edit by instruction", None), ("04 Inpaint and outpaint", "Inpaint")]
)
def test_a_demo_takes_a_picture_and_a_mask_of_ones_own(
    open_page, server, name: str, edit_title: str | None, locale: str, nodes_2: bool
) -> None:
    workflow = graphs.ui_form(f"{name} (nano demo)")
    (load,), (fit,) = ids_of(workflow, "LoadImage"), ids_of(workflow, "ImageScale")
    edits = [node for node in workflow["nodes"] if node["type"] == "ZImageEdit"]
    edit = next(node["id"] for node in edits if (edit_title or "") in node.get("title", ""))
    save = ids_of(workflow, "PreviewImage" if edit_title else "SaveImage")[0]
    comfy = open_page(locale, nodes_2)
    comfy.load(workflow)
    comfy.page.wait_for_function("id => app.graph.getNodeById(id)", arg=load)
    comfy.wait_until_at_rest()
    turn_on(comfy, load)
    upload(comfy, load, f"own {name} {locale} {nodes_2}.png")
    connect(comfy, load, "IMAGE", fit, "image")
    paint_mask(comfy, load)
    connect(comfy, load, "MASK", edit, "mask")
    comfy.run()
    wait_for_picture(comfy, save)
    expect(comfy.alarm).to_have_count(0)
    edited = comfy.page.request.get(comfy.page.url.split("#")[0] + picture_address(comfy, save)).body()
    pixels = np.asarray(Image.open(io.BytesIO(edited)).convert("RGB")).astype(int)
    assert pixels.shape == (128, 128, 3)
    for corner in (pixels[:8, :8], pixels[-8:, -8:]):
        assert np.abs(corner - SKY).max() < NEAR, "what was not painted is the picture of one's own"
    assert np.abs(pixels[60:68, 50:78] - DISC).max() > NEAR, "what was painted has not changed"


def picture_address(comfy: ComfyPage, node_id: int) -> str:
    address = next(address for address in comfy.pictures(node_id) if "/view?" in address)
    return address[address.index("view?") :]
