"""Styles on a real server: those that come along, people's own, and what pictures keep of them."""

from __future__ import annotations

import json

import pytest

from tests.host.graphs import api_form, node_of
from tests.host.inside import module_without_nodes
from tests.host.pictures import explained, saved_images
from tests.host.server import PACK_ROOT, Result

graph_facts = module_without_nodes("nodes.host.page.graph_facts")
BUILT_IN = json.loads((PACK_ROOT / "zimage_core" / "prompt" / "styles.json").read_text(encoding="utf-8"))
INK = "painting, ink wash"


@pytest.fixture
def own_file(server):
    file = server.base / "user" / "zimage" / "styles.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    yield file
    file.unlink(missing_ok=True)


def text_graph(text: object, style: str = INK, **inputs) -> dict:
    return {
        "1": {"class_type": "ZImageStyle", "inputs": {"text": text, "style": style, **inputs}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def text_of(result: Result) -> str:
    assert result.ok, explained(result)
    return result.outputs["2"]["text"][0]


def listed(server) -> tuple[list[str], dict]:
    """The names in the combo, and the words that the page gets of each."""
    kind, settings = server.object_info("ZImageStyle")["input"]["required"]["style"]
    return (kind if isinstance(kind, list) else settings["options"]), settings["styles"]


def test_words_are_added_in_the_prompts_language(server):
    assert text_of(server.run(text_graph("a fox"))) == f"a fox, {BUILT_IN[INK]['en']}"
    assert text_of(server.run(text_graph("a fox", position="before"))) == f"{BUILT_IN[INK]['en']}, a fox"
    fox = "\u4e00\u53ea\u72d0\u72f8"
    assert text_of(server.run(text_graph(fox))) == f"{fox}\uff0c{BUILT_IN[INK]['zh']}"


def test_the_page_gets_every_style_and_its_words(server):
    assert listed(server) == (list(BUILT_IN), BUILT_IN)


def test_own_styles_come_last_and_change_under_their_name(server, own_file):
    for words in ("hand-tinted", "sun-bleached"):
        own_file.write_text(json.dumps({"mine": words, INK: "spilled ink"}), encoding="utf-8")
        names, told = listed(server)
        assert names == [*BUILT_IN, "mine"] and told["mine"]["en"] == words
        assert text_of(server.run(text_graph("a fox", "mine"))) == f"a fox, {words}"
        assert text_of(server.run(text_graph("a fox"))) == "a fox, spilled ink"


def test_a_bad_file_is_named_and_the_built_in_styles_stay(server, own_file):
    own_file.write_text('{"mine": 5}', encoding="utf-8")
    assert listed(server)[0] == list(BUILT_IN)
    assert f"Z-Image styles: {own_file}: the style 'mine' is 5" in server.log
    result = server.run(text_graph("a fox", "mine"))
    assert not result.ok and "the style 'mine' is 5" in result.errors[0]["message"]


def test_a_style_that_there_is_none_of(server):
    result = server.run(text_graph("a fox", "cubist jazz"))
    assert not result.ok
    assert "There is no style 'cubist jazz'" in result.errors[0]["message"]
    assert "styles.json" in result.errors[0]["message"]


def test_pictures_carry_the_whole_text(server):
    graph = api_form("01 Text to image (nano demo)")
    graph[node_of(graph, "ZImageTextEncode")]["inputs"]["text"] = ["s", 0]
    graph[node_of(graph, "ZImageTurboSampler")]["inputs"]["steps"] = 1
    graph["p"] = {"class_type": "PrimitiveString", "inputs": {"value": "a red apple"}}
    graph["s"] = text_graph(["p", 0])["1"]
    workflow = {"nodes": [{"id": "s", "type": "ZImageStyle", "widgets_values": ["", INK, "after", ""]}]}
    (image,) = saved_images(server, server.run(graph, workflow))
    text = f"a red apple, {BUILT_IN[INK]['en']}"
    assert json.loads(image.info["prompt"])["s"]["inputs"]["styled"] == text
    assert json.loads(image.info["workflow"])["nodes"][0]["widgets_values"][3] == text
    assert graph_facts.saved_prompts(json.loads(image.info["prompt"])) == [text]
