"""A node that runs as several: the host runs and caches each by its own inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy_execution.graph_utils import GraphBuilder


def expanded(parts: Iterable[Any]) -> tuple[list[Any], dict | None]:
    """Results, and the graph that makes those still missing; no graph where nothing is missing.

    A missing one is given as (node id, inputs) of the node whose first output it is.
    """
    builder = GraphBuilder()
    results = [builder.node(part[0], **part[1]).out(0) if isinstance(part, tuple) else part for part in parts]
    return results, builder.finalize() or None
