"""Z-Image Latent on the page: width and height follow the size, and a frame shows what comes out."""

import json

import pytest

from tests.host.server import PACK_ROOT
from tests.web.modes import in_languages_and_modes
from tests.web.test_enhancer import SET

TYPE = "ZImageLatent"
READ = """id => Object.fromEntries(app.graph.getNodeById(id).widgets
    .map(widget => [widget.name, [widget.value, Boolean(widget.disabled)]]))"""


@pytest.fixture
def latent(open_page):
    """Opens a page with a new node alone on it; returns the page and the node's id."""

    def latent(locale: str = "en", nodes_2: bool = False):
        comfy = open_page(locale, nodes_2)
        comfy.add_alone(TYPE)
        return comfy, comfy.page.evaluate("app.graph.nodes[0].id")

    return latent


def choose(comfy, node_id: int, **values) -> dict:
    """Sets widgets as a person does; returns each widget's value and whether it is grey."""
    for name, value in values.items():
        comfy.page.evaluate(SET, [node_id, name, value])
    return comfy.page.evaluate(READ, node_id)


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_width_and_height_follow_the_size(latent, nodes_2):
    comfy, node = latent(nodes_2=nodes_2)
    read = choose(comfy, node, size="1344x576")
    assert (read["width"], read["height"]) == ([1344, True], [576, True])
    read = choose(comfy, node, size="custom")
    assert (read["width"], read["height"]) == ([1344, False], [576, False])
    read = choose(comfy, node, width=640, size="128x128 (nano)")
    assert (read["width"], read["height"]) == ([128, True], [128, True])
    read = choose(comfy, node, height=640)  # some pages let it be changed all the same
    assert read["size"][0] == "custom" and (read["width"][0], read["height"][0]) == (128, 640)


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "nodes 2.0"])
def test_the_frame_says_what_comes_out(latent, nodes_2):
    comfy, node = latent(nodes_2=nodes_2)
    assert comfy.never_shown({"1024 x 1024"}) == set()
    choose(comfy, node, size="1344x576", swap=True)
    assert comfy.never_shown({"576 x 1344"}) == set()
    choose(comfy, node, size="1280x720", swap=False, megapixels=0.25)
    assert comfy.never_shown({"688 x 384"}) == set()
    choose(comfy, node, size="custom", width=640, height=480, megapixels=0)
    assert comfy.never_shown({"640 x 480"}) == set()


@in_languages_and_modes
def test_sizes_are_shown_by_shape_and_sent_by_their_ids(latent, locale, nodes_2):
    comfy, node = latent(locale, nodes_2)
    choose(comfy, node, size="1280x720")
    texts = json.loads((PACK_ROOT / "locales" / locale / "nodeDefs.json").read_text(encoding="utf-8"))
    label = texts[TYPE]["inputs"]["size"]["options"]["1280x720"]
    assert "16:9" in label
    shown = {label} if comfy.frontend.option_labels or not nodes_2 else {"1280x720"}
    assert comfy.never_shown(shown) == set()
    sent = comfy.page.evaluate("async id => (await app.graphToPrompt()).output[id].inputs", node)
    assert sent["size"] == "1280x720"


def test_a_picture_decides(open_page):
    graph = {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 336, "height": 190, "batch_size": 1, "color": 0},
        },
        "2": {
            "class_type": TYPE,
            "inputs": {
                "size": "1024x1024", "width": 1024, "height": 1024, "swap": False, "batch_size": 1,
                "image": ["1", 0], "megapixels": 0,
            },
        },
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }  # fmt: skip
    comfy = open_page()
    comfy.page.evaluate("graph => app.loadApiJson(graph, 'picture')", graph)
    comfy.page.wait_for_function("app.graph.nodes.length == 3")
    read = comfy.page.evaluate(READ, 2)
    assert [name for name, (_, grey) in read.items() if grey] == ["size", "width", "height"]
    assert "1024 x 1024" not in comfy.texts(), "its size is not known yet"
    comfy.run()
    assert comfy.never_shown({"336 x 192"}) == set()
