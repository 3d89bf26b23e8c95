"""Jobs that processes do together, for test_train_distributed.

RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them; python -m tests.core.together FOLDER JOB
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import random_s3dit
from zimage_core.acceleration.checkpointing import Checkpointing
from zimage_core.config import S3DiTConfig
from zimage_core.train import distributed, full, lora
from zimage_core.train.batch import Batches, Example
from zimage_core.train.data.records import PictureRecord
from zimage_core.train.distributed import Processes, Stopped, whole
from zimage_core.train.flow import Noise
from zimage_core.train.full import FullRun, FullSettings, choose
from zimage_core.train.plan import Plan
from zimage_core.train.run import Parts
from zimage_core.train.samples import Sampling, draw
from zimage_core.train.stages.velocity import Velocity
from zimage_core.train.trainer import Progress, fit, trained

CONFIG = S3DiTConfig(
    dim=128, n_layers=2, n_refiner_layers=1, n_heads=1, ffn_dim=96, cap_feat_dim=64, t_hidden=32
)
SEED = 7
KINDS = ("lora", "visual layers")  # of a run: a LoRA, or parts of the model
ALL = "visual layers text"
PLAN = Plan(steps=3, lr=1e-4, warmup=1, ema=0.9, weight_decay=0.01, save_steps=1)


def examples(count: int, size: tuple[int, int], seed: int) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Example(
            torch.randn(16, *size, generator=generator),
            (torch.randn(5 + number, CONFIG.cap_feat_dim, generator=generator),),
        )
        for number in range(count)
    ]


def train(kind: str, group: Processes, folder: Path, plan: Plan = PLAN, **how) -> dict[str, Tensor]:
    """A few steps of a LoRA or of a model's parts on three pictures and one of another size -> averages."""
    model = random_s3dit(CONFIG, SEED)
    if kind == "lora":
        torch.manual_seed(SEED)
        for change in lora.inject(model, lora.Settings(rank=4)).values():
            torch.nn.init.normal_(change.lora_B.weight, std=0.1)  # Adam's first step from zero is all sign
    else:
        choose(model, kind.split())
        group.shard(model, torch.float32)
    batches, prior = Batches(examples(3, (8, 12), 1), 3), Batches(examples(1, (8, 8), 2), 1)
    task = Velocity(batches, prior, hooks=(Checkpointing(model),), group=group)

    def backward(step: int, generator: torch.Generator) -> float:
        return task.backward(model, step, generator)

    averages = fit(trained(model), backward, plan, folder, group=group, **how)
    picture = draw(model, [batches.examples[0].captions[0]], (8, 8), Sampling(2), [0])
    return {**{name: whole(value) for name, value in averages.items()}, "picture": picture}


def features(text: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(text))
    return torch.randn(4 + len(text) % 3, CONFIG.cap_feat_dim, generator=generator)


def encode(pixels: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 6, 1, 1)[:, :16]


def full_run(group: Processes, folder: Path) -> None:
    """A run of one picture with samples, of which the last comes after the last step, and its file."""
    path = folder / f"picture {group.rank}.png"
    Image.new("RGB", (64, 64), "teal").save(path)
    settings = FullSettings(
        PLAN, noise=Noise("uniform"), sampling=Sampling(2), resolution=64, batch=2, sample_every=1,
        sample_prompts=("all teal",), prior=("a fox",), parts=("visual", "layers"),
    )  # fmt: skip
    parts = Parts(random_s3dit(CONFIG, SEED), encode, features, decode=lambda latents: latents[:, :3])
    run = FullRun(parts, [PictureRecord(path, ("all teal",))], settings, folder / "full run", group=group)
    with mock.patch.object(full, "compute_dtype", lambda *_: torch.float32):
        run.train()
    full.write(folder / "written.safetensors", parts.model, {}, group)
    write(group, folder / "in full.safetensors", {name: whole(p) for name, p in trained(parts.model).items()})


def equal(group: Processes, folder: Path) -> None:
    """Whole runs, and runs that are stopped and go on, here and, from a copy, in one process."""
    for kind in KINDS:
        found = train(kind, group, folder / kind)
        train(kind, group, folder / f"{kind}, parts", stop_at=2)
        if group.first:
            shutil.copytree(folder / f"{kind}, parts", folder / f"{kind}, begun by two")
        again = train(kind, group, folder / f"{kind}, parts")
        assert all(torch.equal(value, again[name]) for name, value in found.items()), kind
        write(group, folder / f"{kind}.safetensors", found)
    write(group, folder / "begun by one.safetensors", train(ALL, group, folder / "begun by one"))


def write(group: Processes, path: Path, tensors: dict[str, Tensor]) -> None:
    if group.first:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, path)


def stopped(group: Processes, folder: Path) -> None:
    """The second is asked to stop after its second step."""

    def watch(progress: Progress) -> None:
        group.asked = group.rank == 1 and progress.step == 2

    for kind in KINDS:
        try:
            train(kind, group, folder / f"{kind}, stopped", replace(PLAN, save_steps=None), watch=watch)
        except Stopped:
            group.asked = False
        else:
            raise AssertionError("it went on")


def fails(group: Processes, folder: Path) -> None:
    """The first one's disk is full."""

    def watch(progress: Progress) -> None:
        if group.first:
            raise OSError("planted")

    train("lora", group, folder / "fails", watch=watch)


JOBS: dict[str, Callable[[Processes, Path], None]] = {
    "equal": equal,
    "full_run": full_run,
    "stopped": stopped,
    "fails": fails,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    together = distributed.join("cpu")
    for job in sys.argv[2:]:
        JOBS[job](together, Path(sys.argv[1]))
        Path(sys.argv[1], f"{job} {together.rank}").touch()
    distributed.leave()
