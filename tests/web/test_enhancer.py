"""The prompt enhancer's text on the page: it grows while it is written, is saved, and can be locked."""

from __future__ import annotations

import itertools
import re
import time

import pytest

from tests.host import graphs

NODE = "ZImagePromptEnhancer"
SEEDS = itertools.count(20_001)  # a seed of its own for each run, so that none is only remembered
# What the node's box holds after each piece of news about it; a page may show several of them at once.
WATCH = """id => {
    const box = app.graph.getNodeById(id).widgets.find(widget => widget.name == "text")
    window.texts = []
    app.api.addEventListener("zimage.text", () => window.texts.push(box.value))
}"""
SEND = "async id => (await app.graphToPrompt()).output[id].inputs"
SET = """([id, name, value]) => {
    const widget = app.graph.getNodeById(id).widgets.find(widget => widget.name == name)
    widget.value = value
    widget.callback?.(value)
}"""


def run_and_wait(comfy, server, seconds: float = 300.0) -> dict:
    """Run by the button; returns the server's memory of it."""
    before = server.get_json("/history").keys()
    comfy.run()
    deadline = time.monotonic() + seconds
    while not (new := server.get_json("/history").keys() - before):
        assert time.monotonic() < deadline, "the run did not end"
        comfy.page.wait_for_timeout(200)
    return server.get_json("/history")[new.pop()]


def boxes(comfy) -> list[str]:
    """What the text boxes on the page hold."""
    return comfy.page.evaluate("[...document.querySelectorAll('textarea')].map(box => box.value)")


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_the_text_grows_is_kept_and_can_be_locked(open_page, server, nodes_2):
    workflow = graphs.ui_form("02 Prompt enhancer (nano demo)")
    (enhancer,) = [node["id"] for node in workflow["nodes"] if node["type"] == NODE]
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(workflow)
    comfy.page.wait_for_function("id => app.graph.getNodeById(id)", arg=enhancer)
    # Wild and long, so that there is something to see.
    for name, value in {
        "seed": next(SEEDS), "max_tokens": 150, "temperature": 2, "top_k": 0, "top_p": 1,
    }.items():  # fmt: skip
        comfy.page.evaluate(SET, [enhancer, name, value])
    comfy.page.evaluate(WATCH, enhancer)
    text = run_and_wait(comfy, server)["outputs"][str(enhancer)]["enhanced"][0]
    comfy.page.wait_for_function(
        "([id, text]) => app.graph.getNodeById(id).widgets.some(widget => widget.value == text)",
        arg=[enhancer, text],
    )

    def saved() -> list:
        (node,) = [node for node in comfy.graph()["nodes"] if node["type"] == NODE]
        return node["widgets_values"]

    assert saved()[1:3] == [text, False]
    seen = comfy.page.evaluate("window.texts")
    assert seen and all(text.startswith(part.strip()) for part in seen)
    assert len(seen[0]) < len(text), "it was seen to grow"
    assert text in boxes(comfy)

    sent = comfy.page.evaluate(SEND, enhancer)
    assert sent["text"] == "" and sent["locked"] is False, "a shown text must not make the run a new one"
    for name, value in {"text": "a green tree", "locked": True}.items():
        comfy.page.evaluate(SET, [enhancer, name, value])
    sent = comfy.page.evaluate(SEND, enhancer)
    assert sent["text"] == "a green tree" and sent["locked"] is True
    assert run_and_wait(comfy, server)["outputs"][str(enhancer)]["enhanced"] == ["a green tree"]
    assert saved()[1:3] == ["a green tree", True]


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_one_of_several_texts_is_taken_by_a_button(open_page, server, nodes_2):
    workflow = graphs.ui_form("02 Prompt enhancer (nano demo)")
    (enhancer,) = [node["id"] for node in workflow["nodes"] if node["type"] == NODE]
    comfy = open_page(nodes_2=nodes_2)
    comfy.load(workflow)
    comfy.page.wait_for_function("id => app.graph.getNodeById(id)", arg=enhancer)
    buttons = comfy.page.locator("button[title]", has_text=re.compile(r"^[123]$"))
    run_and_wait(comfy, server)
    assert buttons.count() == 0, "of one text there is nothing to choose"
    for name, value in {"seed": next(SEEDS), "max_tokens": 30, "temperature": 2, "variants": 3}.items():
        comfy.page.evaluate(SET, [enhancer, name, value])
    texts = run_and_wait(comfy, server)["outputs"][str(enhancer)]["variants"]
    buttons.nth(2).wait_for()
    assert [buttons.nth(at).get_attribute("title") for at in range(3)] == texts
    pressed = [buttons.nth(at).get_attribute("aria-pressed") for at in range(3)]
    assert pressed == ["true", "false", "false"], "the first went on"
    buttons.nth(1).click()
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    sent = comfy.page.evaluate(SEND, enhancer)
    assert sent["text"] == texts[1] and sent["locked"] is True
    assert run_and_wait(comfy, server)["outputs"][str(enhancer)]["enhanced"] == [texts[1]]
    assert buttons.count() == 3, "another one can still be taken"
