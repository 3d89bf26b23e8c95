"""A node that runs as several: the host runs and caches each by its own inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_execution.graph_utils import GraphBuilder


def expanded(nodes: Iterable[tuple[str, dict]]) -> tuple[list[Any], dict]:
    """(node id, inputs) of independent nodes -> the first output of each, and the graph to expand into."""
    builder = GraphBuilder()
    links = [builder.node(node_id, **inputs).out(0) for node_id, inputs in nodes]
    return links, builder.finalize()
