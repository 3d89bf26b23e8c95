"""Every workflow that ships is well-formed in both forms, and runs as it stands."""

import json
import os

import pytest
from PIL import Image

from tests.host import graphs
from tests.host.pictures import explained, saved_images

LARGEST_THUMBNAIL = 200_000  # bytes


def test_there_are_workflows_and_each_has_both_forms():
    assert set(graphs.NAMES) >= {"z_image_turbo_text_to_image", "z_image_turbo_host_ksampler"}
    assert set(graphs.NAMES) == {path.stem for path in (graphs.WORKFLOWS / "api").glob("*.json")}


@pytest.mark.parametrize("name", graphs.NAMES)
def test_both_forms_are_the_same_graph(server, name):
    assert graphs.to_api(graphs.ui_form(name), server.object_info()) == graphs.api_form(name)


@pytest.mark.parametrize("name", graphs.NAMES)
def test_ui_form_is_consistent(server, name):
    """Links join sockets that exist and agree, and every node names the pack that provides it."""
    workflow, contracts = graphs.ui_form(name), server.object_info()
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["version"] == 0.4
    assert workflow["last_node_id"] >= max(nodes)
    assert workflow["last_link_id"] >= max(link[0] for link in workflow["links"])
    for link, source, out_slot, target, in_slot, kind in workflow["links"]:
        output, socket = nodes[source]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert link in output["links"] and socket["link"] == link
        assert output["type"] == socket["type"] == kind
    for node in nodes.values():
        pack = "zimage" if node["type"].startswith("ZImage") else "comfy-core"
        assert node["properties"]["cnr_id"] == pack
        if node["type"] not in graphs.NOTES:
            outputs = [output["name"] for output in node["outputs"]]
            assert outputs == contracts[node["type"]]["output_name"][: len(outputs)]  # hosts append outputs
            order = contracts[node["type"]]["input_order"]
            declared = order.get("required", []) + order.get("optional", [])
            assert {socket["name"] for socket in node["inputs"]} <= set(declared)
    assert any(node["type"] in graphs.NOTES for node in nodes.values()), "a note says what the workflow shows"


@pytest.mark.parametrize("name", graphs.NAMES)
def test_thumbnail(name):
    path = graphs.WORKFLOWS / f"{name}.jpg"
    assert path.stat().st_size <= LARGEST_THUMBNAIL
    with Image.open(path) as thumbnail:
        assert thumbnail.format == "JPEG" and min(thumbnail.size) >= 128


@pytest.mark.parametrize("name", graphs.NAMES)
def test_runs_as_it_stands_and_the_picture_carries_it(server, name):
    workflow = graphs.ui_form(name)
    result = server.run(graphs.api_form(name), workflow)
    assert result.ok, explained(result)
    images = saved_images(server, result)
    assert images
    for image in images:
        darkest, brightest = image.convert("L").getextrema()
        assert darkest < brightest, "the picture is one flat colour"
        assert json.loads(image.info["workflow"]) == workflow
        assert json.loads(image.info["prompt"]) == graphs.api_form(name)


@pytest.mark.parametrize("name", graphs.NAMES)
def test_the_page_can_fetch_it(server, name):
    pack = "ComfyUI-ZImage"
    assert name in server.get_json("/workflow_templates")[pack]
    for path in (f"{name}.json", f"{name}.jpg"):
        assert server.get(f"/api/workflow_templates/{pack}/{path}") == (graphs.WORKFLOWS / path).read_bytes()


def test_no_workflow_names_a_place_on_this_machine():
    home = os.path.expanduser("~")
    for path in graphs.WORKFLOWS.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert home not in text and "://localhost" not in text
