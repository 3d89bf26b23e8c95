"""Guided runs with steps left out, beside other caches: how far each ends from the run with all its steps.

Each peer may cost what the step cache costs: its threshold is searched for until it does, and where none
gives that, it has the next larger cost that it can have. The distances are compared run by run. Also rewrites
the table of docs/step-cache.md.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from bench.cache_peers import DBCache, EasyCache, mean_cache_steps, mean_velocity
from bench.paired import interval
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
STEPS, COMPUTED = len(SIGMAS) - 1, len(computed_steps(SIGMAS))
GUIDANCE = 3.0  # the host's cfg 4
SEARCH = 8  # runs in search of a threshold
PROMPTS = (
    "a fox on a plain yellow background",
    "a picture of a castle against a plain green backdrop",
    "a red apple, white background",
)
LEARNT = "a dog, blue background"  # what MeanCache's schedule is learnt from
SEEDS = seeds(5)
# Full-size blocks. The first, which DBCache always runs, is a larger part of few than of the whole model:
# that is not counted against it. With more of them the bench takes hours.
WIDE = S3DiTConfig(n_layers=3, n_refiner_layers=0, cap_feat_dim=64, pad_multiple=1)
WIDE_SIZE, WIDE_CAPTION = (4, 4), 4  # latent cells, tokens
OURS = "step cache"


@dataclass
class Case:
    """A network, the captions of both sides [positive..., negative...] and noise [B, C, H, W] of one run."""

    network: S3DiT
    condition: Prompt
    noise: Tensor

    def __post_init__(self) -> None:
        self.memo = RunMemo()

    def velocity(self, x: Tensor, sigma: float, hooks: list = ()) -> Tensor:
        time, given = torch.full((len(x),), sigma), x.to(self.network.dtype)
        return self.network(given, time, condition=self.condition, hooks=hooks, memo=self.memo).float()

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


def ours(case: Case) -> Tensor:
    cache = StepCache(SIGMAS)
    return case.run(lambda x, sigma: cache.velocity(lambda: case.guided(x, sigma)))


def mean_cache(case: Case, path: list[int]) -> Tensor:
    """Each computed step stands, with its mean velocity, for all up to the next one."""
    x, before = case.noise, None
    for a, b in pairwise([*path, STEPS]):
        velocity = case.guided(x, SIGMAS[a])
        x = euler_step(x, mean_velocity(SIGMAS, a, b, velocity, before), SIGMAS[a], SIGMAS[b])
        before = a, velocity
    return x


Runs = list[tuple[float, float]]  # of each case the forwards and the distance from its whole run
Peer = Callable[["Case", float], EasyCache | DBCache]  # with a threshold


@dataclass
class Found:
    """What each method made of the same cases."""

    network: str
    methods: dict[str, Runs] = field(default_factory=dict)

    def mean(self, name: str) -> tuple[float, float]:
        """Forwards and distance."""
        return tuple(statistics.fmean(values) for values in zip(*self.methods[name], strict=True))

    def ratios(self, name: str) -> list[float]:
        """The step cache's distance over this one's, run by run."""
        return [
            own / other for (_, own), (_, other) in zip(self.methods[OURS], self.methods[name], strict=True)
        ]


class Searched:
    """A peer of which a larger threshold leaves out more; the next search starts where the last one ended."""

    def __init__(self, peer: Peer) -> None:
        self.peer, self.guess = peer, 0.5

    def run(self, case: Case) -> tuple[float, Tensor]:
        """Forwards and latent of the run with COMPUTED forwards, else with the fewest that are more."""
        low, high, threshold, least = 0.0, None, self.guess, STEPS
        found: tuple[float, Tensor] | None = None
        for _ in range(SEARCH):
            peer = self.peer(case, threshold)
            made = case.run(lambda x, sigma, peer=peer: case.guided(x, sigma, peer))
            if peer.forwards < COMPUTED:
                high, least = threshold, COMPUTED - peer.forwards
            else:
                low = self.guess = threshold
                found = peer.forwards, made
            if found and (found[0] == COMPUTED or high and found[0] - COMPUTED + least <= 1):
                break
            threshold = 2 * low if high is None else (low + high) / 2
        return found or (STEPS, whole_run(case)[0])


def host_sampling() -> object:
    """The host's sigmas of Z-Image, which its EasyCache asks for start and end."""
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow

    sampling = type("Sampling", (ModelSamplingDiscreteFlow, CONST), {})()
    sampling.set_parameters(shift=3.0, multiplier=1.0)
    return sampling


def peers(channels: int) -> dict[str, Searched]:
    sampling = host_sampling()
    return {
        "EasyCache (ComfyUI)": Searched(lambda c, t: EasyCache(t, c.velocity, channels, sampling)),
        "DBCache (cache-dit)": Searched(lambda c, t: DBCache(t, c.velocity)),
        "DBCache with TaylorSeer": Searched(lambda c, t: DBCache(t, c.velocity, taylor=True)),
    }


def measure(found: Found, cases: list[Case], learnt: Case, searched: dict[str, Searched]) -> None:
    """Add the runs of these cases of one network, with schedules of MeanCache from another run of it."""
    _, path_of = whole_run(learnt)
    paths = {power: mean_cache_steps(SIGMAS, path_of, COMPUTED, power) for power in (1, 2)}
    fewer = flow_sigmas(COMPUTED).tolist()
    for case in cases:
        whole, _ = whole_run(case)
        made: dict[str, tuple[float, Tensor]] = {OURS: (COMPUTED, ours(case))}
        made |= {name: peer.run(case) for name, peer in searched.items()}
        for power, path in paths.items():
            made[f"MeanCache, errors to the power of {power}"] = COMPUTED, mean_cache(case, path)
        made[f"{COMPUTED} steps instead"] = COMPUTED, case.run(case.guided, fewer)
        for name, (forwards, latent) in made.items():
            found.methods.setdefault(name, []).append((forwards, relative(latent, whole)))


Group = tuple[list[Case], Case]  # of one network, and one to learn from


def nano_cases() -> Iterator[Group]:
    """Two seeds for each prompt, at the size that nano draws."""
    parts = (NANO / f"{name}.safetensors" for name in ("transformer", "text_encoder", "autoencoder"))
    pipe = ZImagePipeline.from_files(*parts, NANO / "tokenizer", torch_dtype=torch.float32)

    def case(prompt: str, seed: int) -> Case:
        noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(seed))
        return Case(pipe.transformer, Prompt(pipe.encode_prompts([prompt, ""])), noise)

    yield [case(p, seed) for p in PROMPTS for seed in SEEDS[:2]], case(LEARNT, SEEDS[2])


def wide_cases() -> Iterator[Group]:
    """Of each seed random weights in bf16, captions and noise of a picture, and of one to learn from."""
    for seed in SEEDS:
        network = random_s3dit(WIDE, seed).bfloat16()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(shape, generator=generator)

        def case(network: S3DiT = network, draw: Callable[..., Tensor] = draw) -> Case:
            captions = Captions.whole(draw(2, WIDE_CAPTION, WIDE.cap_feat_dim).bfloat16())
            return Case(network, Prompt(captions), draw(1, WIDE.in_channels, *WIDE_SIZE))

        yield [case()], case()


NETWORKS = {  # and at most how many times a peer's distance
    "nano": (nano_cases, "<= 0.67"),
    f"{WIDE.n_layers} random layers of full width": (wide_cases, "<= 0.9"),
}


def table(found: list[Found]) -> str:
    lines = ["| network | method | forwards | distance | step cache over it |", "|---|---|---|---|---|"]
    for each in found:
        for name in each.methods:
            forwards, distance = each.mean(name)
            ratio = "" if name == OURS else spread(each.ratios(name))
            lines.append(f"| {each.network} | {name} | {forwards:.3g} | {distance:.2g} | {ratio} |")
    return "\n".join(lines)


def spread(ratios: list[float]) -> str:
    low, high = interval(ratios)
    return f"{statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"


def write_page(text: str) -> None:
    """Put the table between its marks."""
    begin, end = "<!-- table -->\n", "<!-- end of table -->\n"
    before, rest = PAGE.read_text("utf-8").split(begin)
    PAGE.write_text(f"{before}{begin}{text}\n{end}{rest.split(end)[1]}", "utf-8")


@torch.no_grad()
def run() -> Iterator[dict]:
    inside.enter(Path(os.environ["COMFYUI_PATH"]), "--use-pytorch-cross-attention")
    made = []
    for network, (groups, bar) in NETWORKS.items():
        found, searched = Found(network), peers(WIDE.in_channels)
        for cases, learnt in groups():
            measure(found, cases, learnt, searched)
        made.append(found)
        yield from rows(found, bar)
    write_page(table(made))


def rows(found: Found, bar: str) -> Iterator[dict]:
    _, own = found.mean(OURS)
    for name, runs in found.methods.items():
        forwards, distance = found.mean(name)
        against = f"all {STEPS} steps computed; {forwards:.4g} forwards, {len(runs)} runs"
        yield row(f"{found.network}: {name}", distance, "relative L2", None, against)
        if name != OURS:
            low, high = interval(found.ratios(name))
            yield row("... step cache over it", own / distance, "x", bar, name)
            yield row("... run by run, lower end of the 90 % interval", low, "x", None, name)
            yield row("... run by run, upper end of the 90 % interval", high, "x", "<= 1", name)
