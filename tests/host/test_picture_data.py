"""What a node writes about itself goes into the prompt and the workflow of the run, in subgraphs too."""

from __future__ import annotations

import copy
import runpy
from types import SimpleNamespace

import pytest

from tests.host.server import PACK_ROOT

saved_workflow = runpy.run_path(str(PACK_ROOT / "nodes" / "host" / "page" / "saved_workflow.py"))
put_widgets, put_again = saved_workflow["put_widgets"], saved_workflow["put_again"]
WIDGETS = ["prompt", "text", "locked", "seed"]
VALUES = {"text": "new", "locked": True}
NODE = {"id": 4, "type": "Enhancer", "widgets_values": ["a", "", False, 1]}
CHANGED = ["a", "new", True, 1]


def after(node_id: str, workflow: dict | None) -> tuple[dict, dict | None]:
    prompt = {node_id: {"inputs": {"prompt": "a"}}}
    workflow = copy.deepcopy(workflow)
    pictures = None if workflow is None else {"workflow": workflow}
    put_widgets(SimpleNamespace(unique_id=node_id, prompt=prompt, extra_pnginfo=pictures), WIDGETS, VALUES)
    return prompt[node_id]["inputs"], workflow


def nested(uses: int) -> dict:
    """A workflow with `uses` of an outer subgraph, in which the node lies in another."""
    inner = {"id": "inner", "nodes": [NODE]}
    outer = {"id": "outer", "nodes": [{"id": 7, "type": "inner"}]}
    return {
        "nodes": [{"id": number, "type": "outer"} for number in range(uses)],
        "definitions": {"subgraphs": [outer, inner]},
    }


def test_a_plain_workflow() -> None:
    inputs, workflow = after("4", {"nodes": [{"id": 1, "type": "x"}, NODE]})
    assert inputs == {"prompt": "a", **VALUES}
    assert workflow["nodes"][1]["widgets_values"] == CHANGED


def test_within_subgraphs() -> None:
    _, workflow = after("0:7:4", nested(uses=1))
    assert workflow["definitions"]["subgraphs"][1]["nodes"][0]["widgets_values"] == CHANGED


def test_what_is_used_twice_is_saved_once_and_so_is_left_alone() -> None:
    inputs, workflow = after("0:7:4", nested(uses=2))
    assert inputs["text"] == "new" and workflow == nested(uses=2)


def test_without_a_workflow_or_the_node_in_it() -> None:
    """As the API runs it, and as a node runs that another one made."""
    assert after("4", None)[0]["text"] == "new"
    for node_id in ("9", "4:1", "4.0.1"):
        assert after(node_id, {"nodes": [NODE]})[1] == {"nodes": [NODE]}


@pytest.mark.parametrize(
    "workflow",
    [
        "text",
        [NODE],
        7,
        {"nodes": None},
        {"nodes": [None, "4", {"id": 4, "properties": "x", "widgets_values": {"text": ""}}]},
        {"nodes": {"4": NODE}},
        {"nodes": [{"id": 0, "type": ["x"]}], "definitions": ["x"]},
        {
            "nodes": [{"id": 0, "type": "x"}],
            "definitions": {"subgraphs": [None, {"nodes": [NODE]}, {"id": []}]},
        },
    ],
    ids=range(8),
)
@pytest.mark.parametrize("node_id", ["4", "0:4"])
def test_programs_may_send_anything_as_the_workflow(node_id: str, workflow: object) -> None:
    prompt, pictures = {node_id: {"inputs": {}}}, {"workflow": copy.deepcopy(workflow)}
    seen = SimpleNamespace(unique_id=node_id, prompt=prompt, extra_pnginfo=pictures)
    put_widgets(seen, WIDGETS, VALUES, {"made_for": ["a"]})
    assert prompt[node_id]["inputs"] == VALUES


def chain(seed: int) -> dict:
    """An enhancer before another one before a node that saves."""
    return {
        "1": {"class_type": "Enhancer", "inputs": {"prompt": "a", "seed": seed}},
        "2": {"class_type": "Enhancer", "inputs": {"prompt": ["1", 0]}},
        "3": {"class_type": "Save", "inputs": {"text": ["2", 0]}},
    }


def as_seen_by(node_id: str, prompt: dict, workflow: dict | None = None) -> SimpleNamespace:
    pictures = None if workflow is None else {"workflow": workflow}
    return SimpleNamespace(unique_id=node_id, prompt=prompt, extra_pnginfo=pictures)


def test_what_the_host_does_not_run_again_is_put_again() -> None:
    """In each later run of the same nodes, wherever it begins; and not where an input is another."""
    whole = chain(seed=1)
    for node_id in "12":
        put_widgets(as_seen_by(node_id, whole), WIDGETS, {"text": f"new {node_id}"})
    all_kept = chain(seed=1)
    workflow = {"nodes": [{"id": 2, "widgets_values": ["a", "", False, 1]}]}
    put_again(as_seen_by("3", all_kept, workflow))
    assert all_kept == whole
    assert workflow["nodes"][0]["widgets_values"] == ["a", "new 2", False, 1]
    second_runs_again = chain(seed=1)
    put_widgets(as_seen_by("2", second_runs_again), WIDGETS, {"text": "newer"})
    put_again(as_seen_by("3", second_runs_again))
    assert [second_runs_again[node_id]["inputs"].get("text") for node_id in "12"] == ["new 1", "newer"]
    another = chain(seed=2)
    put_again(as_seen_by("3", another))
    assert another == chain(seed=2)


def test_properties_beside_the_widgets_are_kept_too() -> None:
    """What the workflow has already stays; a later node that was not run again finds them as well."""
    given = {"made_for": ["a"]}
    put_widgets(as_seen_by("2", chain(seed=5)), WIDGETS, {"text": "new"}, given)
    for properties, expected in (({"old": 1}, {"old": 1, **given}), (None, given)):
        workflow = {"nodes": [{"id": 2, "widgets_values": ["a", "", False, 1], "properties": properties}]}
        put_again(as_seen_by("3", chain(seed=5), workflow))
        assert workflow["nodes"][0]["properties"] == expected
