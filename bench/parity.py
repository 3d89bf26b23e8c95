"""How far our numbers are from the references': the same random weights and inputs."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from bench.rows import row
from tests.core.peers import diffusers_of, diffusers_velocity, reference_of
from tests.core.random_models import TINY, WIDE, random_inputs, random_s3dit, relative, seeds
from zimage_core.sampling.schedule import euler_step, flow_sigmas

HOST_TESTS = Path(__file__).resolve().parents[1] / "tests" / "host"


def fp32_rows() -> list[dict]:
    rows = []
    for label, config, count in (("tiny", TINY, 5), ("dim 3840", WIDE, 1)):
        to_peer, over_truth = [], []
        for seed in seeds(count):
            model = random_s3dit(config, seed)
            x, sigma, caption = random_inputs(config, seed)
            ours, peer = (
                model(x, sigma, caption),
                diffusers_velocity(diffusers_of(model), x, sigma, [caption[0]]),
            )
            truth = reference_of(model)(x[0], float(sigma[0]), caption[0])[None]
            to_peer.append(relative(ours, peer))
            over_truth.append(relative(ours, truth) / relative(peer, truth))
        name = f"fp32 velocity, {label}, {count} seeds"
        rows.append(row(f"{name}: worst", max(to_peer), "relative L2", "<= 1e-5", "diffusers"))
        against = "diffusers' own error, both to float64"
        rows.append(row(f"{name}: worst error", max(over_truth), "x", "<= 1.1", against))
    return rows


def bf16_rows() -> list[dict]:
    ratios = []
    for seed in seeds(10):
        model = random_s3dit(TINY, seed)
        x, sigma, caption = random_inputs(TINY, seed)
        truth = reference_of(model)(x[0], float(sigma[0]), caption[0])[None]
        model, x, caption = model.bfloat16(), x.bfloat16(), caption.bfloat16()
        peer = diffusers_velocity(diffusers_of(model), x, sigma, [caption[0]])
        ratios.append(relative(model(x, sigma, caption), truth) / relative(peer, truth))
    median = statistics.median(ratios)
    return [
        row("bf16 error, median of 10 seeds", median, "x", "<= 1.05", "diffusers' own error, both to float64")
    ]


def eight_steps() -> list[dict]:
    (seed,) = seeds(1)
    model = random_s3dit(TINY, seed)
    peer = diffusers_of(model)
    noise, _, caption = random_inputs(TINY, seed)

    def run(velocity) -> Tensor:
        x, sigmas = noise, flow_sigmas(8).tolist()
        for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = euler_step(x, velocity(x, torch.tensor([sigma])), sigma, sigma_next)
        return x

    ours = run(lambda x, sigma: model(x, sigma, caption))
    theirs = run(lambda x, sigma: diffusers_velocity(peer, x, sigma, [caption[0]]))
    return [
        row("fp32 latents after 8 Turbo steps", relative(ours, theirs), "relative L2", "<= 1e-4", "diffusers")
    ]


def native_rows() -> list[dict]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, HOST_TESTS / "launch.py", HOST_TESTS / "native_parity.py"]
        command += [os.environ["COMFYUI_PATH"], scratch]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    bars = {"networks": "<= 1e-5", "runs": "<= 1e-4"}
    return [
        row(f"fp32 {kind}: {label}", distance, "relative L2", bars[kind], "the host's own Z-Image")
        for kind in bars
        for label, distance in found[kind].items()
    ]


@torch.no_grad()
def run() -> list[dict]:
    return [*fp32_rows(), *bf16_rows(), *eight_steps(), *native_rows()]
