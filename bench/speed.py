"""One forward of ours, the host's NextDiT and diffusers, and text of ours and of transformers: the same
weights, interleaved in one process.

On a GPU the whole 6 B model at 512, 1024 and 2048 pixels; on a CPU full-width slices of it. The limit is the
same matrix products and attention alone, measured in the same run.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import generation
from bench.rows import row
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.weights.keys import transformer_to_diffusers

CAPTION = 96  # tokens
GPU_SIZES = (512, 1024, 2048)
GPU_BARS = {1024: {"native": "<= 0.85", "diffusers": "<= 0.75"}, 2048: {"native": "<= 0.75"}}
CPU_SLICE = S3DiTConfig(n_layers=2, n_refiner_layers=1)
CPU_SIZE = 256
Forward = Callable[[], torch.Tensor]


def normal_weights(config: S3DiTConfig, device: str, dtype: torch.dtype) -> S3DiT:
    """Values of a trained model's size: matrix products of zeros would be faster than real ones."""
    model = S3DiT(config, device="meta", dtype=dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(1)
    for p in model.parameters():
        if p.ndim == 1:
            p.data.fill_(1.0)
        else:
            p.data.normal_(std=p.shape[-1] ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def native(model: S3DiT, device: str) -> nn.Module:
    """The host's network on the same tensors, with its own operations and attention."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    sys.argv = [sys.argv[0]] + ([] if device == "cuda" else ["--cpu"])
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.ops
    from comfy.ldm.lumina.model import NextDiT

    c = model.config
    dtype = model.x_pad_token.dtype
    peer = NextDiT(
        patch_size=2, in_channels=16, dim=c.dim, n_layers=c.n_layers, n_refiner_layers=c.n_refiner_layers,
        n_heads=c.n_heads, n_kv_heads=c.n_kv_heads, ffn_dim_multiplier=8 / 3, norm_eps=c.norm_eps,
        qk_norm=True, cap_feat_dim=c.cap_feat_dim, axes_dims=list(c.axes_dims), axes_lens=[1536, 512, 512],
        rope_theta=c.rope_theta, z_image_modulation=True, time_scale=c.t_scale,
        pad_tokens_multiple=c.pad_multiple, dtype=dtype, device="meta",
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    peer.load_state_dict(model.state_dict(), strict=False, assign=True)
    if hasattr(peer, "norm_final"):  # a leftover that its forward does not use
        del peer.norm_final
    return peer.eval()


def diffusers(model: S3DiT) -> nn.Module:
    from diffusers import ZImageTransformer2DModel

    c = model.config
    with torch.device("meta"):
        peer = ZImageTransformer2DModel(
            dim=c.dim, n_layers=c.n_layers, n_refiner_layers=c.n_refiner_layers, n_heads=c.n_heads,
            n_kv_heads=c.n_kv_heads, cap_feat_dim=c.cap_feat_dim, axes_lens=[1536, 512, 512],
        )  # fmt: skip
    peer.load_state_dict(transformer_to_diffusers(model.state_dict()), assign=True)
    return peer.eval()


def clock(device: str, call: Forward) -> float:
    """Seconds of one call."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def best_attention(q: torch.Tensor) -> Forward:
    """The fastest of torch's attention backends here."""
    candidates = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):

        def attend(backend=backend):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, q, q)

        try:
            attend()
            seconds = min(clock(q.device.type, attend) for _ in range(3))
        except RuntimeError:  # not available for this device or shape
            continue
        candidates.append((seconds, attend))
    return min(candidates, key=lambda pair: pair[0])[1]


def limit(config: S3DiTConfig, image: int, device: str, dtype: torch.dtype) -> Forward:
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


def forwards(model: S3DiT, pixels: int, device: str, peers: dict[str, nn.Module]) -> dict[str, Forward]:
    dtype = model.x_pad_token.dtype
    side = pixels // 8
    place = {"device": device, "dtype": dtype}
    x, caption = torch.randn(1, 16, side, side, **place), torch.randn(1, CAPTION, 2560, **place)
    memo, kept = RunMemo(), Prompt(Captions.whole(caption))
    latents, captions = [x[0].unsqueeze(1)], [caption[0]]

    def sigma() -> torch.Tensor:  # a new tensor each time, as a sampler makes it: modulation is computed anew
        return torch.full((1,), 0.7, device=device)

    return {
        "ours": lambda: model(x, sigma(), condition=kept, memo=memo),
        "ours again": lambda: model(x, sigma(), condition=kept, memo=memo),
        "ours, nothing kept": lambda: model(x, sigma(), caption),
        "native": lambda: peers["native"](x, sigma(), caption, CAPTION),
        "diffusers": lambda: peers["diffusers"](latents, sigma(), captions, return_dict=False)[0],
        "limit": limit(model.config, (side // 2) ** 2, device, dtype),
    }


def interleaved(calls: dict[str, Forward], device: str, rounds: int) -> dict[str, list[float]]:
    """Each round runs all, in an order that turns from round to round."""
    for call in calls.values():
        call()
    names, times = list(calls), {name: [] for name in calls}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(clock(device, calls[name]))
    return times


def compare(label: str, times: dict[str, list[float]], bars: dict[str, str]) -> list[dict]:
    ours = times["ours"]
    rows = [row(f"{label}: {name}", 1000 * min(seconds), "ms, best") for name, seconds in times.items()]
    # A run keeps its refined caption. Of a slice that is a larger part than of 34 blocks: see "nothing kept".
    for name in ("ours again", "ours, nothing kept", "native", "diffusers", "limit"):
        ratio = statistics.median(a / b for a, b in zip(ours, times[name], strict=True))
        rows.append(row(f"{label}: ours / {name}", ratio, "x, paired median", bars.get(name), name))
    return rows


@torch.no_grad()
def run() -> list[dict]:
    if torch.cuda.is_available():
        model = normal_weights(S3DiTConfig(), "cuda", torch.bfloat16)
        peers = {"native": native(model, "cuda"), "diffusers": diffusers(model)}
        card = torch.cuda.get_device_name()
        rows = [
            fact
            for size in GPU_SIZES
            for fact in compare(
                f"{card}, bf16, {size}x{size}",
                interleaved(forwards(model, size, "cuda", peers), "cuda", 20),
                GPU_BARS.get(size, {}),
            )
        ]
        return rows + generation.rows(clock)
    rows = generation.rows(clock)
    for dtype in (torch.bfloat16, torch.float32):
        model = normal_weights(CPU_SLICE, "cpu", dtype)
        peers = {"native": native(model, "cpu"), "diffusers": diffusers(model)}
        label = f"CPU, {str(dtype).removeprefix('torch.')}, 2 of 30 layers, {CPU_SIZE}x{CPU_SIZE}"
        rows += compare(label, interleaved(forwards(model, CPU_SIZE, "cpu", peers), "cpu", 7), {})
    for size, bars in GPU_BARS.items():
        rows += [
            row(f"GPU, bf16, {size}x{size}: ours / {name}", None, "x", bar, name)
            for name, bar in bars.items()
        ]
    return rows
