"""Choices in prompts on a real server: what is drawn, what the picture keeps of it, when it is drawn anew."""

from __future__ import annotations

import json

import pytest

from tests.host.graphs import api_form, node_of
from tests.host.inside import module_without_nodes
from tests.host.pictures import explained, saved_images
from tests.host.server import Result

graph_facts = module_without_nodes("nodes.host.page.graph_facts")
TURBO = "01 Text to image (nano demo)"


@pytest.fixture
def folder(server):
    folder = server.base / "user" / "zimage" / "wildcards"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fruit.txt").write_text("apple\nstrawberry\n", encoding="utf-8")
    return folder


def text_graph(text: object, seed: int = 0, **inputs) -> dict:
    return {
        "1": {"class_type": "ZImageWildcards", "inputs": {"text": text, "seed": seed, **inputs}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def drawn(result: Result) -> str:
    assert result.ok, explained(result)
    assert result.outputs["1"]["drawn"] == result.outputs["2"]["text"]
    return result.outputs["1"]["drawn"][0]


def with_picture(text: object, seed: int, picture_seed: int = 7) -> dict:
    """The first template with its prompt drawn."""
    graph = api_form(TURBO)
    graph[node_of(graph, "ZImageTextEncode")]["inputs"]["text"] = ["w", 0]
    graph[node_of(graph, "ZImageTurboSampler")]["inputs"].update(seed=picture_seed, steps=1)
    return {**graph, "w": {"class_type": "ZImageWildcards", "inputs": {"text": text, "seed": seed}}}


def test_the_seed_draws(server, folder):
    text = "a {red|green} __fruit__ \\{on\\|off\\}"
    texts = [drawn(server.run(text_graph(text, seed))) for seed in range(12)]
    assert set(texts) == {
        f"a {colour} {fruit} {{on|off}}" for colour in ("red", "green") for fruit in ("apple", "strawberry")
    }
    assert drawn(server.run(text_graph(text, 3))) == texts[3]


def test_pictures_carry_the_drawn_text(server, folder):
    """In the graph that was run and in the workflow; only what was drawn differs from what was sent."""
    graph = with_picture("a {red|green} __fruit__", 5)
    text = ["a {red|green} __fruit__", 5, "fixed", ""]
    workflow = {"nodes": [{"id": "w", "type": "ZImageWildcards", "widgets_values": text}]}
    result = server.run(graph, workflow)
    (image,) = saved_images(server, result)
    made = result.outputs["w"]["drawn"][0]
    assert made in {f"a {colour} {fruit}" for colour in ("red", "green") for fruit in ("apple", "strawberry")}
    prompt = json.loads(image.info["prompt"])
    assert prompt["w"]["inputs"] == {**graph["w"]["inputs"], "drawn": made}
    assert json.loads(image.info["workflow"])["nodes"][0]["widgets_values"] == [*text[:3], made]
    assert graph_facts.saved_prompts(prompt) == [made]


def test_a_picture_that_needs_no_new_drawing_has_its_text_too(server, folder):
    graph = with_picture("a {red|green} __fruit__", 6)
    first = server.run(graph)
    second = server.run(with_picture("a {red|green} __fruit__", 6, picture_seed=8))
    assert first.ok and "w" not in second.ran
    (image,) = saved_images(server, second)
    assert graph_facts.saved_prompts(json.loads(image.info["prompt"])) == first.outputs["w"]["drawn"]


def test_a_changed_file_is_drawn_from_at_once(server, folder):
    linked = {"3": {"class_type": "PrimitiveString", "inputs": {"value": "__fruit__ pie"}}}
    for graph in (text_graph("__fruit__ pie", 9), text_graph(["3", 0], 9) | linked):
        for fruit in ("pear", "plum"):
            (folder / "fruit.txt").write_text(fruit, encoding="utf-8")
            assert drawn(server.run(graph)) == f"{fruit} pie"
        again = server.run(graph)
        assert again.ok and "1" not in again.ran


def test_what_is_shown_decides_nothing(server, folder):
    text = "a {red|green} apple"
    assert drawn(server.run(text_graph(text, 4, drawn="a blue plum"))) == drawn(
        server.run(text_graph(text, 4))
    )


@pytest.mark.parametrize(
    "text, reasons",
    [
        ("a __tree__", ["tree.txt", "wildcards", "There is: fruit"]),
        ("a __/etc/passwd__", ["There is: fruit"]),
        ("{a|b}" * 101, ["more than 100"]),
    ],
    ids=["missing name", "path", "number"],
)
def test_errors_say_what_to_do(server, folder, text, reasons):
    result = server.run(text_graph(text))
    assert not result.ok
    (error,) = result.errors
    assert error["type"] == "WildcardError" and all(reason in error["message"] for reason in reasons)


def test_the_page_does_not_draw(server):
    """Its own drawing would leave nothing to the seed."""
    assert (
        server.object_info("ZImageWildcards")["input"]["required"]["text"][1].get("dynamicPrompts")
        is not True
    )
