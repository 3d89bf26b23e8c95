"""CUDA graphs inside the host: only where nothing changes, moves or streams what a graph has recorded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ....zimage_core.acceleration.graphs import Graphs, layers
from ....zimage_core.model.hooks import BlockHook
from ....zimage_core.model.sequence import Prepared, Time
from .one_pass import packs
from .packed import is_changed

KEY = "zimage_graphs"  # among the options of a MODEL
CHANGING = ("weight_function", "bias_function")  # in the host's layers: what is done to weights at each use
STREAMED = "_v"  # in the host's layers: their weights come when they are used


def with_graphs(patcher: Any, graphs: Graphs) -> None:
    """From now on this MODEL's steps are recorded where they can be; they go when it is unloaded."""
    patcher.model_options.setdefault("transformer_options", {})[KEY] = graphs
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, lambda *_: graphs.clear())
    patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, lambda *_: _tell(graphs))


def _tell(graphs: Graphs) -> None:
    if graphs.steps:
        because = f" ({graphs.reason})" if graphs.reason else ""
        logging.info("Z-Image: %d of %d forwards by CUDA graphs%s", graphs.replays, graphs.steps, because)
    graphs.replays = graphs.steps = 0


def step_by_graph(
    network: nn.Module,
    x: Tensor,
    timesteps: Tensor,
    given: tuple[Prepared, Time, Sequence[BlockHook]],
    options: dict,
) -> Tensor | None:
    """What the network's `step` returns for x and `given`, or None: then it is to be called."""
    graphs = options.get(KEY)
    if graphs is None:
        return None
    # code of others may do another thing in each step
    obstacle = in_weights(network, x) if packs(options) else "another node changes what the model does"
    return graphs.step(network, x, timesteps, *given, obstacle)


def in_weights(network: nn.Module, x: Tensor) -> str:
    """What keeps a layer's weights from lying still, in words."""
    device = x.device
    for own in layers(network):
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            return "a layer is looked at"
        if any(own.get(kind) for kind in CHANGING) or is_changed(own):
            return "a LoRA is applied as the model runs"
        parameters = own["_parameters"].values()
        if STREAMED in own or any(p is not None and p.device != device for p in parameters):
            return "the model is streamed to the card"
    return ""
