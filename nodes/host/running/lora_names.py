"""The files of the LoRAs before the node that runs, as its graph names them."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ....zimage_core.weights import WeightsError
from ....zimage_core.weights.files import read_header

WIDGET = "lora_name"  # as ComfyUI's own loaders, and most others, call it


def lora_files() -> dict[str, int | None]:
    """{name: how many tensors the file has, None where it is no safetensors file}; empty without a graph."""
    running, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if running is None or server is None:
        return {}
    items, _ = server.prompt_queue.get_current_queue_volatile()
    graph = next((item[2] for item in items if item[1] == running.prompt_id), {})
    return {name: _tensors(name) for name in _names(graph, running.node_id)}


def _names(graph: dict, node_id: str) -> list[str]:
    names, seen, waiting = [], set(), [node_id]
    while waiting:
        node_id = waiting.pop()
        if node_id in seen or node_id not in graph:
            continue
        seen.add(node_id)
        inputs = graph[node_id]["inputs"]
        if isinstance(inputs.get(WIDGET), str):
            names.append(inputs[WIDGET])
        waiting += [str(value[0]) for value in inputs.values() if isinstance(value, list) and len(value) == 2]
    return names


def _tensors(name: str) -> int | None:
    path = folder_paths.get_full_path("loras", name)
    try:
        return len(read_header(Path(path), name).keys() - {"__metadata__"}) if path else None
    except (WeightsError, OSError):
        return None
