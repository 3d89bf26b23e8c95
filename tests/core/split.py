"""Forwards that several processes do together, for test_parallel: velocities of one and of all.

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them; python -m tests.core.split OUT
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import random_inputs, random_s3dit, randomise, relative
from zimage_core import S3DiT, S3DiTConfig, ZImagePipeline
from zimage_core.acceleration.parallel import Parallel
from zimage_core.conditions.control import Control, ControlNet
from zimage_core.conditions.packed import Packed
from zimage_core.conditions.references import References
from zimage_core.conditions.regions import Region, Regions
from zimage_core.config import ControlConfig, NanoConfig
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

SEED = 5
NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
VRAM = "145MB"  # in which the picture of `picture` is decoded in tiles
BASE = S3DiTConfig(dim=160, n_layers=2, n_refiner_layers=2, n_heads=5, cap_feat_dim=32, axes_dims=(8, 12, 12))
GROUPED = dataclasses.replace(BASE, dim=192, n_heads=6, n_kv_heads=2)
OMNI = dataclasses.replace(BASE, siglip_feat_dim=48)
Case = tuple[S3DiT, Callable[..., Tensor]]


def velocity(config: S3DiTConfig, make: Callable, size=(8, 12), batch: int = 1, length: int = 21, **given):
    """make: captions -> what the picture is made from."""
    model = random_s3dit(config, SEED)
    x, sigma, caption = random_inputs(config, SEED, batch, size, length)
    condition = make(caption)

    def call(*hooks: Parallel) -> Tensor:
        made = [Control(*control) for control in given.get("controls", ())]
        sigmas = sigma[:1] if isinstance(condition, Packed) else sigma
        return model(x, sigmas, condition=condition, hooks=[*hooks, *made], memo=RunMemo())

    return call


def prompt(caption: Tensor) -> Prompt:
    return Prompt(Captions.whole(caption))


def of_lengths(caption: Tensor) -> Prompt:
    return Prompt(Captions(caption, (40, 7)))


def regions(caption: Tensor) -> Regions:
    weight = torch.zeros(1, 8, 12)
    weight[:, 3:, 2:] = 0.7
    return Regions(prompt(caption), [Region(Captions.whole(caption.flip(1)[:, :9]), weight)])


def packed(caption: Tensor) -> Packed:
    return Packed([prompt(caption), prompt(caption[:, :3])])


def references(caption: Tensor) -> References:
    generator = torch.Generator().manual_seed(SEED)
    latent = torch.randn(1, 16, 6, 10, generator=generator)
    segments = [torch.randn(1, count, 32, generator=generator) for count in (3, 5)]
    return References.of(prompt(caption), [latent], segments, [torch.randn(1, 4, 5, 48, generator=generator)])


def controls(routing: str, channels: int) -> list[tuple]:
    network = randomise(ControlNet(ControlConfig(BASE, channels, routing)), SEED + 1)
    latent = torch.randn(1, channels, 8, 12, generator=torch.Generator().manual_seed(SEED))
    return [(network, latent, 0.7)]


CASES = {
    "plain": lambda: velocity(BASE, prompt),
    "odd size": lambda: velocity(BASE, prompt, (6, 10)),
    "batch of two lengths": lambda: velocity(BASE, of_lengths, batch=2, length=40),
    "grouped queries": lambda: velocity(GROUPED, prompt),
    "regions": lambda: velocity(BASE, regions),
    "two in one pass": lambda: velocity(BASE, packed),
    "references": lambda: velocity(OMNI, references),
    "control 1.0": lambda: velocity(BASE, prompt, controls=controls("tokens", 16)),
    "control 2.0": lambda: velocity(BASE, prompt, controls=controls("layers", 33)),
    "control 2.1": lambda: velocity(BASE, prompt, controls=controls("refiner", 33)),
}


def nano(dtype: torch.dtype | None = torch.float32) -> ZImagePipeline:
    parts = (NANO / f"{part}.safetensors" for part in ("transformer", "text_encoder", "autoencoder"))
    return ZImagePipeline.from_files(*parts, NANO / "tokenizer", torch_dtype=dtype)


def drawn(pipe: ZImagePipeline, height: int) -> Tensor:
    sizes = {"height": height, "width": 256, "num_inference_steps": 2, "guidance_scale": 2.0}
    generator = torch.Generator().manual_seed(SEED)
    return pipe("a fox", generator=generator, output_type="pt", **sizes).images


def picture() -> tuple[Tensor, Tensor]:
    """Of the nano model, guided, in little memory and in tiles: by one process and by all."""
    pipe = nano().enable_streaming(VRAM, "cpu")
    return drawn(pipe, 320), drawn(pipe.enable_parallel(), 320)


def in_parts() -> tuple[Tensor, Tensor]:
    """In the types of the files, by one process, and by all, each with a part of the weights."""
    pipe = nano(dtype=None)
    alone, whole = drawn(pipe, 128), held(pipe)
    together = drawn(pipe.enable_parallel(sharded=True), 128)
    assert held(pipe) < 0.6 * whole, (held(pipe), whole)
    return alone, together


def of_the_first() -> tuple[Tensor, Tensor]:
    """Without generators: by one process with the first one's seed, and by all, each with its own."""
    pipe, call = nano(), {"height": 64, "width": 64, "num_inference_steps": 1, "output_type": "pt"}
    torch.manual_seed(SEED)
    alone = pipe("a fox", **call).images
    torch.manual_seed(SEED + dist.get_rank())
    return alone, pipe.enable_parallel()("a fox", **call).images


def held(pipe: ZImagePipeline) -> int:
    """Bytes of the transformer's weights in this process."""
    weights = pipe.transformer.parameters()
    return sum((p.to_local() if hasattr(p, "to_local") else p).nbytes for p in weights)


def found() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, velocity by one process, and by all."""
    for name, make in CASES.items():
        call = make()
        with torch.no_grad():
            yield name, call(), call(Parallel())
    if dist.get_world_size() <= NanoConfig().transformer.n_heads:
        yield "picture", *picture()
        yield "of the first", *of_the_first()
        yield "in parts", *in_parts()


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    errors = {name: torch.tensor(relative(together, alone)) for name, alone, together in found()}
    save_file(errors, Path(sys.argv[1]) / f"{dist.get_world_size()} {dist.get_rank()}.safetensors")
    dist.destroy_process_group()
