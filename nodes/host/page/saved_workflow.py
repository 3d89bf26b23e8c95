"""What the pictures of a run say about it, changed while it runs: the host gives all nodes the same data."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

# what nodes put, by what they were given
_KEPT: OrderedDict[str, tuple[Sequence[str], dict, dict]] = OrderedDict()
_MOST_KEPT = 256


def put_widgets(
    hidden: Any, widgets: Sequence[str], values: dict[str, Any], properties: dict[str, Any] | None = None
) -> None:
    """Set widgets of the running node in the prompt and in the workflow that pictures saved later will carry.

    hidden: the node's, with unique_id, prompt and extra_pnginfo; widgets: its widgets' ids in their order,
    with the page's own controls that stand between them. properties: set beside them in the workflow.
    """
    put_again(hidden)
    if str(hidden.unique_id) in (hidden.prompt or {}):
        _KEPT[_given(hidden.prompt, str(hidden.unique_id))] = widgets, values, properties or {}
        while len(_KEPT) > _MOST_KEPT:
            _KEPT.popitem(last=False)
    _put(hidden, str(hidden.unique_id), widgets, values, properties or {})


def put_again(hidden: Any) -> None:
    """Set what the nodes before the running one put, when the host has not run them again for this prompt."""
    for node in _before(hidden.prompt or {}, str(hidden.unique_id)):
        kept = _KEPT.get(_given(hidden.prompt, node))
        if kept:
            _put(hidden, node, *kept)


def _put(
    hidden: Any, number: str, widgets: Sequence[str], values: dict[str, Any], properties: dict[str, Any]
) -> None:
    node = (hidden.prompt or {}).get(number)
    if node is not None:
        node["inputs"].update(values)
    saved = _node_in((hidden.extra_pnginfo or {}).get("workflow"), number.split(":"))
    shown = saved.get("widgets_values") if saved else None
    for name, value in values.items():
        index = widgets.index(name)
        if isinstance(shown, list) and index < len(shown):
            shown[index] = value
    if saved and properties:
        before = saved.get("properties")
        saved["properties"] = {**(before if isinstance(before, dict) else {}), **properties}


def _before(prompt: dict, number: str) -> Iterator[str]:
    """The nodes that a node gets something from, each after those that it gets something from itself."""
    seen, open_ = {number}, [(number, False)]
    while open_:
        node, done = open_.pop()
        if done:
            yield node
            continue
        if node != number:
            open_.append((node, True))
        for value in prompt.get(node, {}).get("inputs", {}).values():
            if _is_link(value) and value[0] in prompt and value[0] not in seen:
                seen.add(value[0])
                open_.append((value[0], False))


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def _given(prompt: dict, number: str) -> str:
    """A node and all before it: what the host tells its results by."""
    nodes = {node: prompt[node] for node in (number, *_before(prompt, number))}
    return json.dumps(nodes, sort_keys=True, default=repr)


def _node_in(workflow: Any, path: list[str]) -> dict | None:
    """The node at a path of ids through nested subgraphs.

    None where a subgraph on the path is used twice: both uses are saved as one.
    """
    definitions = workflow.get("definitions") if isinstance(workflow, dict) else None
    subgraphs = {str(graph.get("id")): graph for graph in _listed(definitions, "subgraphs")}
    types = [str(node.get("type")) for graph in (workflow, *subgraphs.values()) for node in _nodes(graph)]
    graph, node = workflow, None
    for number in path:
        if graph is None or (graph is not workflow and types.count(str(graph.get("id"))) > 1):
            return None
        node = next((node for node in _nodes(graph) if str(node.get("id")) == number), None)
        graph = subgraphs.get(str(node.get("type"))) if node else None
    return node


def _nodes(graph: Any) -> list[dict]:
    return _listed(graph, "nodes")


def _listed(owner: Any, name: str) -> list[dict]:
    """The objects in a list of an object; programs may send anything as the workflow."""
    found = owner.get(name) if isinstance(owner, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
