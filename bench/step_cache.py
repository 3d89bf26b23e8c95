"""Guided runs with steps left out, beside other caches: how far each ends from the run with all its steps.

Each peer gets the same number of whole forwards: its threshold is searched for until the count is right, and
where none gives it, the peer has the next larger count. The steps that DBCache leaves out still run its first
block, which is not counted. Also rewrites the table of docs/step-cache.md.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from bench.cache_peers import DBCache, EasyCache, mean_cache_steps, mean_velocity
from bench.rows import row
from tests.core.random_models import random_s3dit, relative, seeds
from tests.host import inside
from zimage_core import S3DiT, S3DiTConfig, ZImagePipeline
from zimage_core.acceleration.step_cache import StepCache, computed_steps
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.sampling.schedule import euler_step, flow_sigmas

ROOT = Path(__file__).resolve().parents[1]
NANO, PAGE = ROOT / "models" / "nano", ROOT / "docs" / "step-cache.md"
SIGMAS = flow_sigmas(28).tolist()
STEPS = len(SIGMAS) - 1
GUIDANCE = 3.0  # the host's cfg 4
SHARES = (0.6, 0.5)  # the product's, and a bolder one
SEARCH = 8  # halvings of a threshold
PROMPTS = ("a fox on a plain yellow background", "a picture of a castle against a plain green backdrop")
LEARNT = "a dog, blue background"  # what MeanCache's schedule is learnt from
(SEED,) = seeds(1)
WIDE = S3DiTConfig(n_layers=2, n_refiner_layers=0, cap_feat_dim=64, pad_multiple=1)  # full-size blocks
WIDE_SIZE, WIDE_CAPTION = (4, 4), 4  # latent cells, tokens


@dataclass
class Case:
    """A network, the captions of both sides [positive..., negative...] and noise [B, C, H, W] of one run."""

    network: S3DiT
    condition: Prompt
    noise: Tensor

    def __post_init__(self) -> None:
        self.memo = RunMemo()

    def velocity(self, x: Tensor, sigma: float, hooks: list = ()) -> Tensor:
        time = torch.full((len(x),), sigma)
        return self.network(x, time, condition=self.condition, hooks=hooks, memo=self.memo)

    def run(self, velocity: Callable[[Tensor, float], Tensor], sigmas: list[float] = SIGMAS) -> Tensor:
        x = self.noise
        for sigma, following in pairwise(sigmas):
            x = euler_step(x, velocity(x, sigma), sigma, following)
        return x

    def guided(
        self, x: Tensor, sigma: float, both: Callable[[Tensor, float], Tensor] | None = None
    ) -> Tensor:
        """both: of the two sides, in place of the network."""
        positive, negative = (both or self.velocity)(torch.cat((x, x)), sigma).chunk(2)
        return positive + GUIDANCE * (positive - negative)


def whole_run(case: Case) -> tuple[Tensor, list[Tensor]]:
    """The latent at the end, and the guided velocity of each step."""
    seen: list[Tensor] = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        seen.append(case.guided(x, sigma))
        return seen[-1]

    return case.run(velocity), seen


def ours(case: Case, share: float) -> Tensor:
    cache = StepCache(SIGMAS, share=share)
    return case.run(lambda x, sigma: cache.velocity(lambda: case.guided(x, sigma)))


def mean_cache(case: Case, path: list[int]) -> Tensor:
    """Each computed step stands, with its mean velocity, for all up to the next one."""
    x, before = case.noise, None
    for a, b in pairwise([*path, STEPS]):
        velocity = case.guided(x, SIGMAS[a])
        x = euler_step(x, mean_velocity(SIGMAS, a, b, velocity, before), SIGMAS[a], SIGMAS[b])
        before = a, velocity
    return x


class Searched:
    """Runs of a peer with a threshold, the larger, the fewer forwards; each is run once."""

    def __init__(self, case: Case, peer: Callable[[float], EasyCache | DBCache]) -> None:
        self.case, self.peer = case, peer
        self.runs: dict[float, tuple[int, Tensor]] = {}

    def at(self, threshold: float) -> tuple[int, Tensor]:
        if threshold not in self.runs:
            peer = self.peer(threshold)
            made = self.case.run(lambda x, sigma: self.case.guided(x, sigma, peer))
            self.runs[threshold] = peer.computed, made
        return self.runs[threshold]

    def with_forwards(self, count: int) -> tuple[int, Tensor]:
        """The run with so many, else the one with the fewest that are more."""
        low, high = 0.0, 1.0
        for _ in range(SEARCH):
            middle = (low + high) / 2
            found, made = self.at(middle)
            if found == count:
                return found, made
            low, high = (middle, high) if found > count else (low, middle)
        return self.at(low)


def host_sampling() -> object:
    """The host's sigmas of Z-Image, which its EasyCache asks for start and end."""
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow

    sampling = type("Sampling", (ModelSamplingDiscreteFlow, CONST), {})()
    sampling.set_parameters(shift=3.0, multiplier=1.0)
    return sampling


Found = dict[str, tuple[float, float]]  # of each method the whole forwards and the distance, means of runs


def measure(cases: list[Case], learnt: Case) -> Iterator[tuple[int, Found]]:
    """For each number of computed steps."""
    sampling, (_, path_of) = host_sampling(), whole_run(learnt)
    wholes = [whole_run(case)[0] for case in cases]
    channels = cases[0].noise.shape[1]
    easy = [Searched(c, lambda t, c=c: EasyCache(t, c.velocity, channels, sampling)) for c in cases]
    blocks = [Searched(c, lambda t, c=c: DBCache(t, c.velocity)) for c in cases]
    taylor = [Searched(c, lambda t, c=c: DBCache(t, c.velocity, taylor=True)) for c in cases]
    for share in SHARES:
        count = len(computed_steps(SIGMAS, share))
        fewer = flow_sigmas(count).tolist()
        paths = [mean_cache_steps(SIGMAS, path_of, count, power) for power in (1, 2)]
        made: dict[str, list[tuple[float, Tensor]]] = {
            "step cache": [(count, ours(case, share)) for case in cases],
            "EasyCache (ComfyUI)": [each.with_forwards(count) for each in easy],
            "DBCache (cache-dit)": [each.with_forwards(count) for each in blocks],
            "DBCache with TaylorSeer": [each.with_forwards(count) for each in taylor],
            **{
                f"MeanCache, errors to the power of {power}": [(count, mean_cache(c, path)) for c in cases]
                for power, path in zip((1, 2), paths, strict=True)
            },
            f"{count} steps instead": [(count, case.run(case.guided, fewer)) for case in cases],
        }
        found = {}
        for name, runs in made.items():
            distances = [relative(x, whole) for (_, x), whole in zip(runs, wholes, strict=True)]
            found[name] = statistics.fmean(n for n, _ in runs), statistics.fmean(distances)
        yield count, found


def nano_cases() -> tuple[list[Case], Case]:
    """Two prompts, two seeds each, at the size that nano draws."""
    parts = (NANO / f"{name}.safetensors" for name in ("transformer", "text_encoder", "autoencoder"))
    pipe = ZImagePipeline.from_files(*parts, NANO / "tokenizer", torch_dtype=torch.float32)

    def case(prompt: str, seed: int) -> Case:
        noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
        return Case(pipe.transformer, Prompt(pipe.encode_prompts([prompt, ""])), noise)

    return [case(p, SEED + i) for p in PROMPTS for i in range(2)], case(LEARNT, SEED + 2)


def wide_cases() -> tuple[list[Case], Case]:
    """Random weights, captions and noise: two pictures in a batch, and two to learn from."""
    network = random_s3dit(WIDE, SEED)
    generator = torch.Generator().manual_seed(SEED)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def case() -> Case:
        captions = Captions.whole(draw(4, WIDE_CAPTION, WIDE.cap_feat_dim))
        return Case(network, Prompt(captions), draw(2, WIDE.in_channels, *WIDE_SIZE))

    return [case()], case()


NETWORKS = {  # and at most how many times the distance of a peer with as many forwards, or one more
    "nano": (nano_cases, "<= 0.67"),
    "2 random layers of full width": (wide_cases, "<= 0.9"),
}


def table(found: dict[tuple[str, int], Found]) -> str:
    lines = ["| network, of 28 steps | method | whole forwards | distance |", "|---|---|---|---|"]
    for (label, count), methods in found.items():
        lines += [
            f"| {label}, {count} computed | {name} | {forwards:g} | {distance:.2g} |"
            for name, (forwards, distance) in methods.items()
        ]
    return "\n".join(lines)


def write_page(text: str) -> None:
    """Put the table between its marks."""
    begin, end = "<!-- table -->\n", "<!-- end of table -->\n"
    before, rest = PAGE.read_text("utf-8").split(begin)
    PAGE.write_text(f"{before}{begin}{text}\n{end}{rest.split(end)[1]}", "utf-8")


@torch.no_grad()
def run() -> Iterator[dict]:
    inside.enter(Path(os.environ["COMFYUI_PATH"]), "--use-pytorch-cross-attention")
    found = {}
    for label, (make, bar) in NETWORKS.items():
        for count, methods in measure(*make()):
            found[label, count] = methods
            own = methods["step cache"][1]
            for name, (forwards, distance) in methods.items():
                text = f"{label}, {count} of {STEPS}: {name}"
                against = f"all steps computed; {forwards:g} whole forwards"
                yield row(text, distance, "relative L2", None, against)
                if name != "step cache":
                    comparable = bar if forwards <= count + 1 else None
                    yield row("... step cache over it", own / distance, "x", comparable, name)
    write_page(table(found))
