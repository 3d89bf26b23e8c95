"""Every subgraph blueprint that ships is well-formed, is served to the page, and draws a picture."""

import json

import numpy as np
import pytest

from tests.host import graphs
from tests.host.pictures import picture
from tests.host.server import PACK_NAME
from tests.host.well_formed import check_downloads, check_links, check_no_overlap, check_nodes


@pytest.mark.parametrize("name", graphs.BLUEPRINT_NAMES)
def test_blueprint_is_consistent(server, name):
    blueprint, definition = graphs.blueprint(name), graphs.inside(graphs.blueprint(name))
    contracts = server.object_info()
    assert definition["name"] == name
    inside = {node["id"]: node for node in definition["nodes"]}
    boundary = {  # the subgraph's own inputs are where its inner links start, its outputs where they end
        graphs.SUBGRAPH_INPUT: {
            "inputs": [],
            "outputs": [{**socket, "links": socket["linkIds"]} for socket in definition["inputs"]],
        },
        graphs.SUBGRAPH_OUTPUT: {
            "inputs": [{**socket, "link": socket["linkIds"][0]} for socket in definition["outputs"]],
            "outputs": [],
        },
    }
    check_links(inside | boundary, definition["links"])
    check_nodes(definition["nodes"], contracts)
    check_no_overlap(definition["nodes"])
    check_downloads(definition["nodes"])
    (node,) = blueprint["nodes"]
    assert node["type"] == definition["id"]
    for side in ("inputs", "outputs"):
        assert [(s["name"], s["type"]) for s in node[side]] == [
            (s["name"], s["type"]) for s in definition[side]
        ]
    for number, widget in node["properties"]["proxyWidgets"]:
        socket_names = {socket["name"] for socket in inside[int(number)]["inputs"]}
        assert widget in socket_names | {"control_after_generate"}


@pytest.mark.parametrize("name", graphs.BLUEPRINT_NAMES)
def test_the_page_can_fetch_the_blueprint(server, name):
    listed = server.get_json("/global_subgraphs")
    (key,) = (
        key
        for key, entry in listed.items()
        if entry["name"] == name and entry["info"]["node_pack"] == f"custom_nodes.{PACK_NAME}"
    )
    assert json.loads(server.get_json(f"/global_subgraphs/{key}")["data"]) == graphs.blueprint(name)


@pytest.mark.parametrize("name", graphs.BLUEPRINT_NAMES)
def test_blueprint_draws_a_picture(server, name):
    """With its own widget values, and a grey picture where it takes one."""
    definition, contracts = graphs.inside(graphs.blueprint(name)), server.object_info()
    given = {socket["name"]: ["grey", 0] for socket in definition["inputs"] if socket["type"] == "IMAGE"}
    graph = graphs.blueprint_to_api(definition, contracts, given)
    grey = {"width": 128, "height": 128, "batch_size": 1, "color": 0x808080}
    graph["grey"] = {"class_type": "EmptyImage", "inputs": grey}
    assert np.ptp(picture(server, server.run(graph))) > 50
