"""The graphs that ship, and those that once did: workflows in both forms, and subgraph blueprints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.contracts.object_info import FOLDER, load
from tests.host.graphs import NOTES
from tests.host.server import PACK_ROOT

EARLIER = FOLDER / "earlier"  # as they were last, by their old names: people have them
PLACES = (PACK_ROOT, EARLIER)
PAGE_ONLY = {*NOTES, "PrimitiveNode", "Reroute"}


def ui_graphs() -> dict[str, dict]:
    """Workflows and blueprints as the page saves them, by path."""
    return _by_path(*_found("workflows/*.json"), *_found("subgraphs/*.json"))


def api_graphs() -> dict[str, dict]:
    return _by_path(*_found("workflows/api/*.json"))


def _found(pattern: str) -> Iterator[Path]:
    for place in PLACES:
        yield from place.glob(pattern)


def _by_path(*paths: Path) -> dict[str, dict]:
    return {path.relative_to(PACK_ROOT).as_posix(): load(path) for path in sorted(paths)}


def nodes(graph: dict) -> Iterator[dict]:
    """The nodes of a UI graph that a server knows, those inside its subgraphs too."""
    inner = graph.get("definitions", {}).get("subgraphs", [])
    pages = PAGE_ONLY | {subgraph["id"] for subgraph in inner}
    for part in (graph, *inner):
        yield from (node for node in part["nodes"] if node["type"] not in pages)


def node_types() -> set[str]:
    """Of the graphs that ship, and of those that they are made from."""
    types = {node["type"] for graph in ui_graphs().values() for node in nodes(graph)}
    types |= {node["class_type"] for graph in api_graphs().values() for node in graph.values()}
    sources = _by_path(*PACK_ROOT.glob("templates/graphs/*.json"))
    return types | {node["type"] for graph in sources.values() for node in graph["nodes"].values()}
