"""What the pictures of a run say about it, changed while it runs: the host gives all nodes the same data."""

from __future__ import annotations

from typing import Any


def put_widgets(hidden: Any, widgets: list[str], values: dict[str, Any]) -> None:
    """Set widgets of the running node in the prompt and in the workflow that pictures saved later will carry.

    hidden: the node's, with unique_id, prompt and extra_pnginfo; widgets: its widgets' ids in their order, as
    far as no control of the page's own stands between them.
    """
    node = (hidden.prompt or {}).get(hidden.unique_id)
    if node is not None:
        node["inputs"].update(values)
    saved = _node_in((hidden.extra_pnginfo or {}).get("workflow"), str(hidden.unique_id).split(":"))
    shown = saved.get("widgets_values") if saved else None
    for name, value in values.items():
        index = widgets.index(name)
        if isinstance(shown, list) and index < len(shown):
            shown[index] = value


def _node_in(workflow: Any, path: list[str]) -> dict | None:
    """The node at a path of ids through nested subgraphs.

    None where a subgraph on the path is used twice: both uses are saved as one.
    """
    if not workflow:
        return None
    subgraphs = {graph["id"]: graph for graph in (workflow.get("definitions") or {}).get("subgraphs") or []}
    types = [node.get("type") for graph in (workflow, *subgraphs.values()) for node in graph.get("nodes", [])]
    graph, node = workflow, None
    for number in path:
        if graph is None or (graph is not workflow and types.count(graph["id"]) > 1):
            return None
        node = next((node for node in graph.get("nodes", []) if str(node.get("id")) == number), None)
        graph = subgraphs.get(node.get("type")) if node else None
    return node
