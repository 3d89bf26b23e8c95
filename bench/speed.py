"""Every part of a picture, and written text, beside those who do the same: times in turns, and memory.

On a GPU the whole 6 B model; on a CPU full-width slices of it, all in a few minutes. `python -m
bench.published FILE` makes the table and the chart of docs/performance.md from what --json FILE keeps.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKL as PeerAutoencoder
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers import ZImagePipeline as PeerPipeline
from torch import Tensor
from transformers import Qwen3Model

from bench import generation, machine, speed_in_host
from bench.cases import Case
from bench.forwards import BY_GRAPH, GPU_BARS, GRAPH_BARS, compared, device_name, forwards, short
from bench.networks import CAPTION, inputs, native, normal_weights, our_run
from bench.paired import measure, rows
from bench.rows import row
from bench.timing import Call
from tests.core.peers import diffusers_of, qwen3_config
from zimage_core import Qwen3Config, Qwen3TextEncoder, S3DiTConfig
from zimage_core.acceleration.graphs import Capture
from zimage_core.config import SHIFT, TURBO_STEPS, AutoencoderConfig
from zimage_core.model.memo import RunMemo
from zimage_core.sampling.schedule import euler_step, flow_sigmas
from zimage_core.weights import load_autoencoder

BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Sizes:
    """What is run; pixels are those of a side."""

    device: str
    network: S3DiTConfig
    pixels: tuple[int, ...]  # of forwards
    dtypes: tuple[torch.dtype, ...]  # of forwards
    run_pixels: int  # of eight steps, and of a decoded picture
    encoder: Qwen3Config
    writer: Qwen3Config
    autoencoder: AutoencoderConfig
    sampled: S3DiTConfig  # by the host's sampler
    sampled_pixels: int
    guided: S3DiTConfig
    guided_pixels: int
    writer_in_host: Qwen3Config
    rounds: int = 8
    slow_rounds: int = 5  # of what takes seconds; enough for an interval
    capture: Capture | None = None  # in place of CUDA graphs


ON_CARD = Sizes(
    device="cuda",
    network=S3DiTConfig(),
    pixels=(512, 1024, 2048),
    dtypes=(BF16,),
    run_pixels=1024,
    encoder=Qwen3Config(),
    writer=Qwen3Config(),
    autoencoder=AutoencoderConfig(),
    sampled=S3DiTConfig(),
    sampled_pixels=1024,
    guided=S3DiTConfig(),
    guided_pixels=1024,
    writer_in_host=Qwen3Config(),
)
ON_CPU = Sizes(
    device="cpu",
    network=S3DiTConfig(n_layers=2, n_refiner_layers=1),
    pixels=(256,),
    dtypes=(BF16, FP32),
    run_pixels=256,
    encoder=Qwen3Config(num_hidden_layers=4),
    writer=Qwen3Config(num_hidden_layers=4),  # under the whole vocabulary
    autoencoder=AutoencoderConfig(),
    sampled=S3DiTConfig(n_layers=1, n_refiner_layers=1),
    sampled_pixels=128,
    guided=S3DiTConfig(dim=1152, n_layers=2, n_refiner_layers=1, n_heads=9),
    guided_pixels=128,
    writer_in_host=Qwen3Config(num_hidden_layers=3, vocab_size=16_000),
)


def of_layers(config: S3DiTConfig) -> tuple[int, int]:
    return config.n_layers, S3DiTConfig().n_layers


def of_36(layers: int) -> tuple[int, int]:
    return layers, Qwen3Config().num_hidden_layers


def text_encoder(sizes: Sizes) -> Iterator[dict]:
    """As many layers of each; transformers' model has a norm behind them."""
    layers = sizes.encoder.num_hidden_layers
    with torch.device(sizes.device):
        peer = Qwen3Model._from_config(qwen3_config(sizes.encoder), dtype=BF16).eval()
    ours = Qwen3TextEncoder(replace(sizes.encoder, num_hidden_layers=layers + 1), "meta", BF16)
    state = {f"model.{name}": value for name, value in peer.state_dict().items()}
    ours.load_state_dict({name: state[name] for name in ours.state_dict()}, assign=True)
    ids = torch.randint(1000, (1, CAPTION), device=sizes.device)
    calls = {"ours": lambda: ours(ids), "transformers": lambda: peer(ids, use_cache=False)}
    found = measure(calls, sizes.device, sizes.rounds)
    case = Case("text_encoder", "bf16", tokens=CAPTION, layers=of_36(layers))
    yield from rows(case, device_name(sizes.device), found, {})


def forward(sizes: Sizes) -> Iterator[dict]:
    for dtype in sizes.dtypes:
        model = normal_weights(sizes.network, sizes.device, dtype)
        peers = {"native": native(model, sizes.device), "diffusers": diffusers_of(model)}
        for pixels in sizes.pixels:
            rounds = sizes.rounds if dtype == BF16 else sizes.slow_rounds
            calls = forwards(model, pixels, sizes.device, peers, sizes.capture)
            found = measure(calls, sizes.device, rounds)
            yield from compared(found, sizes.device, dtype, pixels, layers=of_layers(sizes.network))
        del model, peers
        gc.collect()


def eight_steps(sizes: Sizes) -> Iterator[dict]:
    """The library's loop and diffusers' pipeline, from a given caption to a latent."""
    model = normal_weights(sizes.network, sizes.device, BF16)
    pixels, peer = sizes.run_pixels, diffusers_of(model)
    latent, caption = inputs(model.config, pixels, sizes.device, BF16)
    noise = torch.randn_like(latent, dtype=FP32)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    pipeline = PeerPipeline(scheduler, None, None, None, peer)
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": TURBO_STEPS, "guidance_scale": 0.0, "output_type": "latent"}

    def ours() -> Tensor:
        x, sigmas = noise, flow_sigmas(TURBO_STEPS, SHIFT).tolist()
        memo = RunMemo()
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            run = our_run(model, x.to(BF16), caption, memo)
            x = euler_step(x, run(torch.full((1,), sigma, device=sizes.device)), sigma, following)
        return x

    def theirs() -> Tensor:
        return pipeline(
            height=pixels, width=pixels, latents=noise.clone(), prompt_embeds=[caption[0]], **options
        ).images

    found = measure({"ours": ours, "diffusers": theirs}, sizes.device, sizes.slow_rounds)
    case = Case("eight_steps", "bf16", pixels=pixels, layers=of_layers(sizes.network))
    yield from rows(case, device_name(sizes.device), found, {})


def vae_decode(sizes: Sizes) -> Iterator[dict]:
    dtype = BF16 if sizes.device == "cuda" else FP32  # as files have it, and as hosts compute on a CPU
    c, place = sizes.autoencoder, {"device": sizes.device, "dtype": dtype}
    with torch.device(sizes.device):
        peer = PeerAutoencoder(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=[c.ch * m for m in c.ch_mult], layers_per_block=c.num_res_blocks,
            latent_channels=c.z_channels, norm_num_groups=c.norm_groups, use_quant_conv=False,
            use_post_quant_conv=False,
        ).to(dtype).eval()  # fmt: skip
    ours = load_autoencoder(peer.state_dict(), device=sizes.device)
    side = sizes.run_pixels // c.downscale
    latent = torch.randn(1, c.z_channels, side, side, **place)
    theirs = speed_in_host.vae(ours)
    calls = {
        "ours": lambda: ours.decode(latent),
        "native": lambda: theirs.decode(latent),
        "diffusers": lambda: peer.decode(latent).sample,
    }
    found = measure(calls, sizes.device, sizes.slow_rounds)
    case = Case("vae_decode", short(dtype), pixels=sizes.run_pixels)
    yield from rows(case, device_name(sizes.device), found, {})


def sampler_in_host(sizes: Sizes) -> Iterator[dict]:
    """Eight steps of KSampler, in the types that each MODEL chooses for a bf16 file."""
    calls = speed_in_host.eight_steps(sizes.sampled, sizes.sampled_pixels)
    layers = of_layers(sizes.sampled)
    case = Case("sampler_in_host", "bf16", pixels=sizes.sampled_pixels, layers=layers)
    yield from in_host(case, sizes, calls)


def guided_in_host(sizes: Sizes) -> Iterator[dict]:
    config, pixels = sizes.guided, sizes.guided_pixels
    case = Case("guided_in_host", "bf16", pixels=pixels, dim=config.dim, layers=of_layers(config))
    yield from in_host(case, sizes, speed_in_host.guided(config, pixels))


def in_host(case: Case, sizes: Sizes, calls: dict[str, Call]) -> Iterator[dict]:
    """With the two bars of a whole run: neither the median nor the interval says that ours is slower."""
    found = measure(calls, sizes.device, sizes.slow_rounds)
    for fact in rows(case, device_name(sizes.device), found, {"native": "<= 1.03"}):
        yield fact
        if fact.get("low") is not None:
            yield row(f"{fact['name']}, interval's lower end", fact["low"], "x", "<= 1.00", "native")


def writing(sizes: Sizes) -> Iterator[dict]:
    yield from generation.rows(sizes.writer, sizes.device, sizes.slow_rounds)


def writing_in_host(sizes: Sizes) -> Iterator[dict]:
    layers = of_36(sizes.writer_in_host.num_hidden_layers)
    case = Case("writing_in_host", "bf16", tokens=speed_in_host.WRITTEN, layers=layers)
    found = measure(speed_in_host.writing(sizes.writer_in_host), sizes.device, sizes.slow_rounds)
    yield from rows(case, device_name(sizes.device), found, {"native": "<= 1.0"})


CASES: dict[str, Callable[[Sizes], Iterator[dict]]] = {
    case.__name__: case
    for case in (
        text_encoder, forward, eight_steps, vae_decode, sampler_in_host, guided_in_host, writing,
        writing_in_host,
    )
}  # fmt: skip


def about() -> dict:
    return machine.about("python dev.py bench speed")


@torch.no_grad()
def run(sizes: Sizes | None = None) -> Iterator[dict]:
    sizes = sizes or (ON_CARD if torch.cuda.is_available() else ON_CPU)
    speed_in_host.enter_host(os.environ["COMFYUI_PATH"], sizes.device)
    for case in CASES.values():
        yield from case(sizes)
        gc.collect()
        if sizes.device == "cuda":
            torch.cuda.empty_cache()
    if sizes.device != "cuda":
        for ours, table in (("ours", GPU_BARS), (BY_GRAPH, GRAPH_BARS)):
            for pixels, bars in table.items():
                for name, bar in bars.items():
                    yield row(f"GPU, bf16, {pixels}x{pixels}: {ours} / {name}", None, "x", bar, name)
