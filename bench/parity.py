"""How far our numbers are from the references': the same random weights and inputs."""

from __future__ import annotations

import statistics
import tempfile

import torch
from torch import Tensor

from bench import parity_in_host
from bench.rows import row
from tests.core.peers import diffusers_of, diffusers_velocity, reference_of
from tests.core.random_models import TINY, WIDE, random_inputs, random_s3dit, relative, seeds
from tests.host import inside
from zimage_core import S3DiTConfig
from zimage_core.sampling.schedule import euler_step, flow_sigmas

SHAPES = [  # height, width in latent cells; caption tokens
    ((8, 12), 21),
    ((8, 8), 32),  # nothing to pad
    ((6, 10), 33),  # both padded
    ((2, 2), 1),
]


def distances(
    config: S3DiTConfig, seed: int, size: tuple[int, int], length: int, dtype: torch.dtype, device: str
) -> tuple[float, float]:
    """Of one velocity: ours from diffusers', and our error over diffusers', both to float64."""
    model = random_s3dit(config, seed)
    x, sigma, caption = random_inputs(config, seed, size=size, length=length)
    truth = reference_of(model)(x[0], float(sigma[0]), caption[0])[None]
    model = model.to(device, dtype)
    x, caption, sigma = x.to(device, dtype), caption.to(device, dtype), sigma.to(device)
    peer = diffusers_velocity(diffusers_of(model), x, sigma, [caption[0]]).cpu()
    ours = model(x, sigma, caption).cpu()
    return relative(ours, peer), relative(ours, truth) / relative(peer, truth)


def fp32_rows(device: str) -> list[dict]:
    rows = []
    for label, config, shapes in (("tiny", TINY, SHAPES * 2), ("dim 3840", WIDE, [((10, 14), 45)])):
        found = [
            distances(config, seed, *shape, torch.float32, device)
            for seed, shape in zip(seeds(len(shapes)), shapes, strict=True)
        ]
        to_peer, over_truth = (max(values) for values in zip(*found, strict=True))
        name = f"fp32 velocity, {label}, {len(shapes)} seeds"
        rows.append(row(f"{name}: worst", to_peer, "relative L2", "<= 1e-5", "diffusers"))
        against = "diffusers' own error, both to float64"
        rows.append(row(f"{name}: worst error", over_truth, "x", "<= 1.1", against))
    return rows


def bf16_rows(device: str) -> list[dict]:
    ratios = [distances(TINY, seed, *SHAPES[0], torch.bfloat16, device)[1] for seed in seeds(10)]
    against = "diffusers' own error, both to float64"
    return [row("bf16 error, median of 10 seeds", statistics.median(ratios), "x", "<= 1.05", against)]


def eight_steps(device: str) -> list[dict]:
    (seed,) = seeds(1)
    model = random_s3dit(TINY, seed).to(device)
    peer = diffusers_of(model)
    noise, _, caption = (t.to(device) for t in random_inputs(TINY, seed))

    def run(velocity) -> Tensor:
        x, sigmas = noise, flow_sigmas(8).tolist()
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = euler_step(x, velocity(x, torch.tensor([sigma], device=device)), sigma, sigma_next)
        return x

    ours = run(lambda x, sigma: model(x, sigma, caption))
    theirs = run(lambda x, sigma: diffusers_velocity(peer, x, sigma, [caption[0]]))
    return [
        row("fp32 latents after 8 Turbo steps", relative(ours, theirs), "relative L2", "<= 1e-4", "diffusers")
    ]


def measured_inside() -> dict:
    """Networks and runs of ours and of the host's own, in a process of the host's own."""
    with tempfile.TemporaryDirectory() as scratch:
        return inside.run(parity_in_host.__file__, scratch)


def native_rows(found: dict) -> list[dict]:
    bars = {"networks": "<= 1e-5", "runs": "<= 1e-4"}
    return [
        row(f"fp32 {kind}: {label}", distance, "relative L2", bars[kind], "the host's own Z-Image")
        for kind in bars
        for label, distance in found[kind].items()
    ]


@torch.no_grad()
def library_rows(device: str = "cpu") -> list[dict]:
    """Without a host."""
    return [*fp32_rows(device), *bf16_rows(device), *eight_steps(device)]


def run() -> list[dict]:
    return [*library_rows(), *native_rows(measured_inside())]
