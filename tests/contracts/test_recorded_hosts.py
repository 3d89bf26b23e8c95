"""Every graph that ships or once did is legal on the recorded hosts, which need not be here."""

import pytest

from tests.contracts.object_info import HOSTS, NODES, illegal, illegal_widgets, inputs, load
from tests.contracts.shipped import api_graphs, nodes, ui_graphs
from tests.host.graphs import widget_values

UI, API = ui_graphs(), api_graphs()


@pytest.fixture(scope="module", params=sorted(path.stem for path in HOSTS.glob("*.json")))
def contracts(request) -> dict:
    """One recorded host's nodes with ours: run `python -m tests.contracts.extract` when some are missing."""
    return load(HOSTS / f"{request.param}.json") | load(NODES)


@pytest.mark.parametrize("path", API)
def test_api_form(contracts, path):
    assert list(illegal(API[path], contracts)) == []


@pytest.mark.parametrize("path", UI)
def test_ui_form(contracts, path):
    for node in nodes(UI[path]):
        kind, where = node["type"], f"node {node['id']} ({node['type']})"
        assert kind in contracts, where
        given = widget_values(node, contracts[kind])
        assert list(illegal_widgets(where, kind, given, contracts)) == []
        assert {socket["name"] for socket in node["inputs"]} <= inputs(contracts[kind]).keys(), where
        outputs = [(socket["name"], socket["type"]) for socket in node["outputs"]]
        promised = zip(contracts[kind]["output_name"], contracts[kind]["output"], strict=True)
        assert outputs == list(promised)[: len(outputs)], where


def test_illegal_values_are_found(contracts):
    """The check itself: each of these is what a host refuses."""
    graph = next(iter(API.values()))
    key, node = next((key, node) for key, node in graph.items() if node["class_type"] == "ZImageLatent")
    for name, value in (("size", "3x4"), ("width", 8), ("batch_size", "1"), ("colour", 1)):
        spoilt = {**graph, key: {**node, "inputs": {**node["inputs"], name: value}}}
        assert [text for text in illegal(spoilt, contracts) if name in text]
    assert [text for text in illegal({**graph, key: {**node, "inputs": {}}}, contracts) if "missing" in text]
