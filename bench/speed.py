"""One forward of ours, the host's NextDiT and diffusers, and text of ours and of transformers.

All have the same weights and run interleaved in one process.

On a GPU the whole 6 B model at 512, 1024 and 2048 pixels; on a CPU full-width slices of it. The limit is the
same matrix products and attention alone, measured in the same run.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import generation
from bench.networks import CAPTION, Run, diffusers_run, inputs, native, native_run, normal_weights, our_run
from bench.rows import row
from bench.scale import CARD, Scale
from bench.timing import Call, clock, interleaved
from tests.core.peers import diffusers_of
from zimage_core import Qwen3Config, S3DiT, S3DiTConfig
from zimage_core.model.memo import RunMemo

# The order in which hosts try attention kernels on cards, from some version between 0.3.75 and 0.33.0 on.
FLASH_FIRST = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
AS_NEWER_HOSTS = "native, flash first"
GPU_BARS = {
    512: {AS_NEWER_HOSTS: "<= 0.70"},
    1024: {AS_NEWER_HOSTS: "<= 0.77", "diffusers": "<= 0.72"},
    2048: {AS_NEWER_HOSTS: "<= 0.69"},
}
CPU_SLICE = S3DiTConfig(n_layers=2, n_refiner_layers=1)
CPU_WRITER = Qwen3Config(num_hidden_layers=4)  # under the whole vocabulary
CPU_SIZE = 256


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


def forwards(model: S3DiT, pixels: int, device: str, peers: dict[str, nn.Module]) -> dict[str, Call]:
    given = inputs(model.config, pixels, device, model.dtype)
    ours = our_run(model, *given, RunMemo())
    runs = {"ours": ours, "ours again": ours, "ours, nothing kept": our_run(model, *given)}
    if "native" in peers:
        runs["native"] = native_run(peers["native"], *given)
        if device == "cuda":
            runs[AS_NEWER_HOSTS] = flash_first(runs["native"])
    runs["diffusers"] = diffusers_run(peers["diffusers"], *given)

    def step(run: Run) -> Call:  # a new sigma each time, as a sampler makes it: modulation is computed anew
        return lambda: run(torch.full((1,), 0.7, device=device))

    calls = {name: step(run) for name, run in runs.items()}
    return {**calls, "limit": limit(model.config, (pixels // 16) ** 2, device, model.dtype)}


def compare(label: str, times: dict[str, list[float]], bars: dict[str, str]) -> Iterator[dict]:
    """A bar for what was not run stays open."""
    ours = times["ours"]
    for name, seconds in times.items():
        yield row(f"{label}: {name}", 1000 * min(seconds), "ms, best")
    # A run keeps its refined caption. Of a slice that is a larger part than of 34 blocks: see "nothing kept".
    for name in dict.fromkeys([*times, *bars]):
        if name == "ours":
            continue
        ratio = None
        if name in times:
            ratio = statistics.median(a / b for a, b in zip(ours, times[name], strict=True))
        yield row(f"{label}: ours / {name}", ratio, "x, paired median", bars.get(name), name)


@torch.no_grad()
def forward_rows(scale: Scale, host: bool, until: float = math.inf) -> Iterator[dict]:
    """All networks at all sizes. host: whether there is one at COMFYUI_PATH."""
    model = normal_weights(scale.config, scale.device, scale.dtype)
    peers = {"diffusers": diffusers_of(model)}
    if host:
        peers["native"] = native(model, scale.device)
    for size in scale.sizes:
        calls = forwards(model, size, scale.device, peers)
        times = interleaved(calls, scale.device, scale.rounds, until)
        dtype = str(scale.dtype).removeprefix("torch.")
        label = f"{device_name(scale.device)}, {dtype}, {size}x{size}"
        yield from compare(label, times, GPU_BARS.get(size, {}))


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


@torch.no_grad()
def on_a_cpu() -> Iterator[dict]:
    for dtype in (torch.bfloat16, torch.float32):
        model = normal_weights(CPU_SLICE, "cpu", dtype)
        peers = {"native": native(model, "cpu"), "diffusers": diffusers_of(model)}
        label = f"CPU, {str(dtype).removeprefix('torch.')}, 2 of 30 layers, {CPU_SIZE}x{CPU_SIZE}"
        yield from compare(label, interleaved(forwards(model, CPU_SIZE, "cpu", peers), "cpu", 7), {})
    for size, bars in GPU_BARS.items():
        for name, bar in bars.items():
            yield row(f"GPU, bf16, {size}x{size}: ours / {name}", None, "x", bar, name)


def run() -> Iterator[dict]:
    if torch.cuda.is_available():
        yield from forward_rows(CARD, host=True)
        yield from generation.rows(CARD.writer, "cuda")
    else:
        yield from generation.rows(CPU_WRITER, "cpu")
        yield from on_a_cpu()
