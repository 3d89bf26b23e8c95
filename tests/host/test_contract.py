"""What people saved with a released version keeps its meaning: nodes, and every workflow that shipped."""

import copy

import pytest

from tests.contracts.object_info import FOLDER, NODES, broken, extract, illegal, inputs, load
from tests.contracts.update import is_ours
from tests.host.graphs import to_api, widget_slots
from tests.host.pictures import saved_images

RELEASED = load(NODES)
WORKFLOWS = FOLDER / "workflows"  # a folder per version
SAVED = sorted(path.relative_to(WORKFLOWS).as_posix() for path in WORKFLOWS.glob("*/*.json"))


def as_recorded(node_id: str, contract: dict) -> dict:
    """The extract of a node on this server, with the record's word on which combos are lists of files."""
    recorded = inputs(RELEASED[node_id]) if node_id in RELEASED else {}

    def is_files(name: str, _: list) -> bool:
        return name in recorded and "options" not in recorded[name].settings

    return extract(contract, is_files)


@pytest.fixture(scope="module")
def now(server) -> dict:
    contracts = server.object_info()
    return {name: as_recorded(name, contracts[name]) for name in contracts if is_ours(name, contracts[name])}


def test_nothing_that_was_released_changed(now):
    assert list(broken(RELEASED, now)) == []


def test_the_record_is_complete(now):
    """When it is not: python -m tests.contracts.update"""
    assert now == RELEASED


def change_default(nodes):
    nodes["ZImageSigmas"]["input"]["required"]["steps"][1]["default"] = 9


def narrow_a_range(nodes):
    nodes["ZImageSigmas"]["input"]["required"]["steps"][1]["max"] = 99


def reorder(nodes):
    nodes["ZImageSigmas"]["input_order"]["required"].reverse()


def drop_an_option(nodes):
    nodes["ZImageLatent"]["input"]["required"]["size"][1]["options"].remove("custom")


def put_an_output_first(nodes):
    nodes["ZImageSigmas"]["output"].insert(0, "INT")
    nodes["ZImageSigmas"]["output_name"].insert(0, "steps")


def append_a_required_input(nodes):
    nodes["ZImageSigmas"]["input"]["required"]["mu"] = ["FLOAT", {"default": 0.0}]
    nodes["ZImageSigmas"]["input_order"]["required"].append("mu")


def drop_a_node(nodes):
    del nodes["ZImageSigmas"]


@pytest.mark.parametrize(
    "change",
    [
        change_default,
        narrow_a_range,
        reorder,
        drop_an_option,
        put_an_output_first,
        append_a_required_input,
        drop_a_node,
    ],
)
def test_a_breaking_change_is_found(change):
    nodes = copy.deepcopy(RELEASED)
    change(nodes)
    assert len(list(broken(RELEASED, nodes))) == 1


def test_growing_breaks_nothing():
    nodes = copy.deepcopy(RELEASED)
    sigmas, size = nodes["ZImageSigmas"], nodes["ZImageLatent"]["input"]["required"]["size"][1]
    sigmas["input"]["optional"] = {"mu": ["FLOAT", {"default": 0.0}]}
    sigmas["input_order"]["optional"] = ["mu"]
    sigmas["input"]["required"]["steps"][1]["max"] = 2000
    size["options"].insert(0, "2048x2048")
    nodes["ZImageNew"] = sigmas
    assert list(broken(RELEASED, nodes)) == []


def opened(workflow: dict, contracts: dict) -> dict:
    """A saved workflow as the page opens it now: widgets that were appended since have their defaults."""
    for node in workflow["nodes"]:
        if node["type"] not in contracts:
            continue
        declared, saved = inputs(contracts[node["type"]]), node.get("widgets_values", [])
        appended = widget_slots(contracts[node["type"]])[len(saved) :]
        node["widgets_values"] = saved + [
            declared[name].settings.get("default") if name else "fixed" for name in appended
        ]
    return workflow


@pytest.mark.parametrize("path", SAVED)
def test_saved_workflow_still_runs(server, path):
    """As it is opened on the page, and as an API client kept it."""
    contracts, (version, name) = server.object_info(), path.split("/")
    from_page = to_api(opened(load(WORKFLOWS / path), contracts), contracts)
    for graph in (from_page, load(WORKFLOWS / version / "api" / name)):
        assert list(illegal(graph, contracts)) == []
        assert saved_images(server, server.run(graph))
