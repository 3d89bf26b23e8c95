"""What a run wrote into target_prompt counts for its own instruction alone; one's own text always counts."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.host import graphs
from tests.web.test_enhancer import SEND, SET, boxes, run_and_wait

SEEDS = itertools.count(30_001)
VALUE = "([id, name]) => app.graph.getNodeById(id).widgets.find(widget => widget.name == name).value"
IS = "([id, text]) => app.graph.getNodeById(id)?.widgets.find(w => w.name == 'target_prompt').value == text"
APPLE, GREEN = "an apple on a blue background", "a fox on a green background"


def settings() -> dict[str, object]:
    """Of a quick edit that needs two descriptions, as weights without omni keys do."""
    return {"seed": next(SEEDS), "steps": 1, "route": "flowedit"}


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_the_target_is_shown_and_may_be_changed(open_page, server, nodes_2):
    workflow = graphs.ui_form("03 Edit by instruction (nano demo)")
    (edit,) = [node["id"] for node in workflow["nodes"] if node["type"] == "ZImageEdit"]
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(workflow)
    comfy.page.wait_for_function("id => app.graph.getNodeById(id)", arg=edit)

    def put(name: str, value: object) -> None:
        comfy.page.evaluate(SET, [edit, name, value])

    def sent() -> str:
        return comfy.page.evaluate(SEND, edit)["target_prompt"]

    def run() -> str:
        return run_and_wait(comfy, server)["outputs"][str(edit)]["text"][0]

    for name, value in settings().items():
        put(name, value)
    assert sent() == ""
    run()
    comfy.page.wait_for_function(IS, arg=[edit, APPLE])
    assert APPLE in boxes(comfy)
    assert sent() == "", "a shown text must not make the run a new one"

    put("instruction", "make the background green")
    assert sent() == "", "it was written for another instruction"
    run()
    comfy.page.wait_for_function(IS, arg=[edit, GREEN])

    # as it is saved, and opened again later
    kept = json.loads(comfy.page.evaluate("JSON.stringify(app.graph.serialize())"))
    comfy.load(workflow)
    comfy.page.wait_for_function(IS, arg=[edit, ""])
    comfy.load(kept)
    comfy.page.wait_for_function(IS, arg=[edit, GREEN])
    assert sent() == GREEN, "the picture is drawn again as it was"
    put("source_prompt", "a cat on a blue background")
    assert sent() == ""

    put("target_prompt", "a lemon")
    assert sent() == "a lemon"
    assert "To: a lemon\n" in run()
    put("instruction", "add a hat")
    assert sent() == comfy.page.evaluate(VALUE, [edit, "target_prompt"]) == "a lemon"


def test_a_dropped_picture_brings_its_target_back(open_page, server):
    """And a change of its instruction writes another."""
    comfy = open_page()
    workflow = graphs.ui_form("03 Edit by instruction (nano demo)")
    (edit,) = [node["id"] for node in workflow["nodes"] if node["type"] == "ZImageEdit"]
    (save,) = [node["id"] for node in workflow["nodes"] if node["type"] == "SaveImage"]
    comfy.load(workflow)
    comfy.page.wait_for_function(IS, arg=[edit, ""])
    for name, value in settings().items():
        comfy.page.evaluate(SET, [edit, name, value])
    (picture,) = run_and_wait(comfy, server)["outputs"][str(save)]["images"]
    comfy.load(workflow)
    comfy.page.wait_for_function(IS, arg=[edit, ""])
    comfy.drop(picture["filename"], "image/png", server.view(picture))
    comfy.page.wait_for_function(IS, arg=[edit, APPLE])
    assert comfy.page.evaluate(SEND, edit)["target_prompt"] == APPLE
    comfy.page.evaluate(SET, [edit, "instruction", "make the background green"])
    assert comfy.page.evaluate(SEND, edit)["target_prompt"] == ""
