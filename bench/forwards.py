"""One forward of ours, the host's NextDiT and diffusers, on the same weights, in turns in one process.

The limit is the same matrix products and attention alone, measured in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.cases import Case
from bench.networks import CAPTION, Run, diffusers_run, inputs, native, native_run, normal_weights, our_run
from bench.paired import Measured, measure, rows
from bench.scale import Scale
from bench.timing import Call, clock
from tests.core.peers import diffusers_of
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.acceleration.graphs import Capture, Graphs
from zimage_core.model.memo import RunMemo

# The order in which hosts try attention kernels on cards, from some version between 0.3.75 and 0.33.0 on.
FLASH_FIRST = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
AS_NEWER_HOSTS = "native, flash first"
BY_GRAPH = "ours, graphs"
GPU_BARS = {
    1024: {AS_NEWER_HOSTS: "<= 0.77", "diffusers": "<= 0.72"},
    2048: {AS_NEWER_HOSTS: "<= 0.69"},
}
GRAPH_BARS = {512: {AS_NEWER_HOSTS: "<= 0.70"}}  # at small sizes cards wait for the processor


def best_attention(q: torch.Tensor) -> Call:
    """The fastest of torch's attention backends here."""
    candidates = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        attend = attention(q, backend)
        try:
            attend()
            seconds = min(clock(q.device.type, attend) for _ in range(3))
        except RuntimeError:  # not available for this device or shape
            continue
        candidates.append((seconds, attend))
    return min(candidates, key=lambda pair: pair[0])[1]


def attention(q: torch.Tensor, backend: SDPBackend) -> Call:
    def attend() -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, q, q)

    return attend


def limit(config: S3DiTConfig, image: int, device: str, dtype: torch.dtype) -> Call:
    """The linears and the attention of a forward with its caption kept, and nothing else."""
    dim, ffn = config.dim, config.ffn_dim
    stacks = ((config.n_refiner_layers, image), (config.n_layers, image + CAPTION))
    place = {"device": device, "dtype": dtype}
    weights = [
        torch.randn(n, k, **place) / k**0.5 for n, k in ((3 * dim, dim), (dim, dim), (ffn, dim), (ffn, dim))
    ]
    down = torch.randn(dim, ffn, **place) / ffn**0.5
    work = []
    for layers, tokens in stacks:
        x, h = torch.randn(1, tokens, dim, **place), torch.randn(1, tokens, ffn, **place)
        q = torch.randn(1, config.n_heads, tokens, config.head_dim, **place)
        work.append((layers, x, h, best_attention(q)))

    def run() -> torch.Tensor:
        for layers, x, h, attend in work:
            for _ in range(layers):
                for weight in weights:
                    F.linear(x, weight)
                out = F.linear(h, down)
                attend()
        return out

    return run


def flash_first(run: Run) -> Run:
    def attending(sigma: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(FLASH_FIRST, set_priority=True):
            return run(sigma)

    return attending


def by_graph(model: S3DiT, run: Run, capture: Capture | None) -> Run:
    graphs = Graphs(capture)

    def replayed(sigma: torch.Tensor) -> torch.Tensor:
        model.graphs = graphs
        try:
            return run(sigma)
        finally:
            model.graphs = None  # the others run on the same weights

    return replayed


def forwards(
    model: S3DiT, pixels: int, device: str, peers: dict[str, nn.Module], capture: Capture | None = None
) -> dict[str, Call]:
    """capture: what stands in for CUDA graphs on a CPU; without it there are none."""
    given = inputs(model.config, pixels, device, model.dtype)
    ours = our_run(model, *given, RunMemo())
    runs = {"ours": ours, "ours again": ours, "ours, nothing kept": our_run(model, *given)}
    if device == "cuda" or capture is not None:
        runs[BY_GRAPH] = by_graph(model, our_run(model, *given, RunMemo()), capture)
    if "native" in peers:
        runs["native"] = native_run(peers["native"], *given)
        if device == "cuda":
            runs[AS_NEWER_HOSTS] = flash_first(runs["native"])
    runs["diffusers"] = diffusers_run(peers["diffusers"], *given)

    def step(run: Run) -> Call:  # a new sigma each time, as a sampler makes it: modulation is computed anew
        return lambda: run(torch.full((1,), 0.7, device=device))

    calls = {name: step(run) for name, run in runs.items()}
    return {**calls, "limit": limit(model.config, (pixels // 16) ** 2, device, model.dtype)}


def compared(found: Measured, device: str, dtype: torch.dtype, pixels: int, **size: Any) -> Iterator[dict]:
    """Of `forwards`: ours beside the others, and ours by a graph beside the same."""
    kinds = {"forward": ("ours", GPU_BARS), "forward_by_graph": (BY_GRAPH, GRAPH_BARS)}
    for name, (ours, bars) in kinds.items():
        other = ({BY_GRAPH} if ours == "ours" else {"ours again", "ours, nothing kept"}) & found.times.keys()
        if ours in found.times:
            times = {call: seconds for call, seconds in found.times.items() if call not in other}
            case = Case(name, short(dtype), pixels=pixels, **size)
            yield from rows(
                case, device_name(device), replace(found, times=times), bars.get(pixels, {}), ours
            )


@torch.no_grad()
def forward_rows(scale: Scale, host: bool, until: float = math.inf) -> Iterator[dict]:
    """All networks at all sizes. host: whether there is one at COMFYUI_PATH."""
    model = normal_weights(scale.config, scale.device, scale.dtype)
    peers = {"diffusers": diffusers_of(model)}
    if host:
        peers["native"] = native(model, scale.device)
    for size in scale.sizes:
        calls = forwards(model, size, scale.device, peers)
        found = measure(calls, scale.device, scale.rounds, until)
        yield from compared(found, scale.device, scale.dtype, size)


def short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"
