"""What a node writes about itself goes into the prompt and the workflow of the run, in subgraphs too."""

from __future__ import annotations

import copy
import runpy
from types import SimpleNamespace

from tests.host.server import PACK_ROOT

put_widgets = runpy.run_path(str(PACK_ROOT / "nodes" / "host" / "page" / "saved_workflow.py"))["put_widgets"]
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
