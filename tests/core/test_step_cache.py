"""Steps without the model: which ones, how near the run stays, and what is never carried over."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.core.random_models import relative, seeds
from zimage_core import ZImagePipeline
from zimage_core.acceleration.step_cache import ENDS, LEAST, StepCache, computed_steps
from zimage_core.model.s3dit import Prompt
from zimage_core.sampling.schedule import euler_step, flow_sigmas, strength_sigmas

NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
(SEED,) = seeds(1)
SIGMAS = flow_sigmas(28).tolist()
GRIDS = {
    "28 steps": SIGMAS,
    "50 steps": flow_sigmas(50).tolist(),
    "without shift": flow_sigmas(20, 1.0).tolist(),
    "from a picture": strength_sigmas(20, 3.0, 0.6).tolist(),
    "geometric": [math.exp(-0.2 * step) for step in range(25)],
}


def euler(velocity: Callable[[Tensor, float], Tensor], x: Tensor, cache: StepCache | None) -> Tensor:
    for sigma, following in pairwise(SIGMAS):

        def compute(x: Tensor = x, sigma: float = sigma) -> Tensor:
            return velocity(x, sigma)

        x = euler_step(x, cache.velocity(compute) if cache else compute(), sigma, following)
    return x


@pytest.mark.parametrize("name", GRIDS)
def test_what_is_computed_follows_from_the_sigmas_alone(name: str) -> None:
    """Six of ten, among them the first two and the last."""
    sigmas = GRIDS[name]
    steps = len(sigmas) - 1
    computed = computed_steps(sigmas)
    assert len(computed) == math.ceil(0.6 * steps) == len(set(computed))
    assert computed[:2] == [0, 1] and computed[-1] == steps - 1 and computed == sorted(computed)
    assert list(inspect.signature(computed_steps).parameters) == ["sigmas", "share"]
    assert StepCache(sigmas).computed == set(computed)


def test_no_other_choice_of_steps_strays_less() -> None:
    """All choices of a short grid, by numeric integration of the parabola's distance from its chords."""
    sigmas = flow_sigmas(LEAST).tolist()
    places = [math.log((sigma + ENDS) / (1 - sigma + ENDS)) for sigma in sigmas]

    def stray(chosen: tuple[int, ...]) -> float:
        total = 0.0
        for a, b in pairwise(chosen):
            for i in range(a + 1, b):
                along = (places[i] - places[a]) / (places[b] - places[a])
                chord = (1 - along) * places[a] ** 2 + along * places[b] ** 2
                total += (sigmas[i] - sigmas[i + 1]) * (chord - places[i] ** 2)
        return total

    count = math.ceil(0.6 * LEAST)
    choices = [(0, 1, *some, LEAST - 1) for some in combinations(range(2, LEAST - 1), count - 3)]
    best = min(map(stray, choices))
    assert stray(tuple(computed_steps(sigmas))) == pytest.approx(best, rel=1e-9)


def test_a_velocity_on_a_parabola_is_followed_exactly() -> None:
    """Euler adds steps up: what lines were wrong by is made up for, once the parabola is known."""
    generator = torch.Generator().manual_seed(SEED)
    terms = torch.randn(3, 1, 4, 2, 2, generator=generator, dtype=torch.float64)

    def velocity(x: Tensor, sigma: float) -> Tensor:
        at = math.log((sigma + ENDS) / (1 - sigma + ENDS))
        return (terms[0] + at * terms[1] + at * at * terms[2]).float()

    start = torch.zeros(1, 4, 2, 2)
    exact, cached = euler(velocity, start, None), euler(velocity, start, StepCache(SIGMAS))
    assert relative(cached, exact) <= 1e-6


def test_a_smooth_run_ends_nearer_than_with_fewer_steps() -> None:
    """The velocity of Gaussian data, in closed form: noise and pictures of three deviations."""
    deviation = torch.tensor([0.2, 1.0, 3.0]).view(1, 3, 1, 1)
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(SEED))

    def velocity(x: Tensor, sigma: float) -> Tensor:
        variance = sigma**2 + (1 - sigma) ** 2 * deviation**2
        return x * (sigma - (1 - sigma) * deviation**2) / variance

    whole, cache = euler(velocity, noise, None), StepCache(SIGMAS)
    x = noise
    for sigma, following in pairwise(flow_sigmas(len(cache.computed)).tolist()):
        x = euler_step(x, velocity(x, sigma), sigma, following)
    assert relative(euler(velocity, noise, cache), whole) <= 0.005 * relative(x, whole)


@pytest.mark.parametrize("steps", (4, 8, 9, LEAST - 1))
def test_few_steps_are_all_computed_to_the_bit(steps: int) -> None:
    cache = StepCache(flow_sigmas(steps).tolist())
    given = [torch.randn(1, 2, 2, 2) for _ in range(steps)]
    assert all(cache.velocity(lambda v=v: v) is v for v in given)
    assert cache.report == f"Step cache: all {steps} steps computed; it leaves some out from 16 steps on."


def test_nothing_is_carried_to_steps_of_another_kind() -> None:
    """Guidance ends in mid-run: each side has one velocity, which a mixture would show."""
    for edge in (1, 5, 12, 26):
        cache = StepCache(SIGMAS, [step < edge for step in range(28)])
        for step in range(28):
            side = torch.full((1, 1, 1, 1), 5.0 if step < edge else -7.0)
            got = cache.velocity(lambda side=side: side)
            torch.testing.assert_close(got, side)
        assert len(cache.computed) <= 19 and cache.report.endswith(
            f"{len(cache.computed)} of 28 steps computed."
        )


def test_a_run_knows_nothing_of_the_one_before() -> None:
    """And of no other that goes on beside it, of another size."""
    a, b = StepCache(SIGMAS), StepCache(SIGMAS)
    for _ in SIGMAS[:-1]:
        assert torch.equal(a.velocity(lambda: torch.ones(1, 1, 2, 2)).round(), torch.ones(1, 1, 2, 2))
        assert torch.equal(b.velocity(lambda: torch.zeros(2, 1, 4, 4)), torch.zeros(2, 1, 4, 4))


@pytest.mark.parametrize("steps", (0, 1, 2, 3, LEAST, 100, 129, 1000))
def test_any_number_of_steps(steps: int) -> None:
    """The first two, the last and six of ten, one more at most for each part of a long run."""
    sigmas = flow_sigmas(max(steps, 1)).tolist()[: steps + 1]
    cache = StepCache(sigmas)
    for _ in range(steps):
        torch.testing.assert_close(cache.velocity(lambda: torch.ones(1, 1, 1, 1)), torch.ones(1, 1, 1, 1))
    assert cache.computed >= {i for i in (0, 1, steps - 1) if 0 <= i < steps}
    least = math.ceil(0.6 * steps) if steps >= LEAST else steps
    assert least <= len(cache.computed) <= least + steps // 60
    assert f" {steps} " in cache.report


BAD_SIGMAS = ([1.0, 0.5, 0.5, 0.0], [0.0, 0.5, 1.0], [1.0, math.nan, 0.0], [14.6, 1.0, 0.0], [1.0, 0.0, -0.1])


@pytest.mark.parametrize("sigmas", BAD_SIGMAS, ids=str)
def test_sigmas_that_do_not_fall_or_are_no_flows_are_refused(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas that fall from step to step, got"):
        StepCache(sigmas)


class Waits(TorchDispatchMode):
    """Names of operators that wait for the device, or read from it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if call in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.append(str(call))
        return call(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device() -> None:
    cache, velocity = StepCache(SIGMAS), torch.ones(1, 16, 4, 4)
    with Waits() as waits:
        for _ in SIGMAS[:-1]:
            cache.velocity(lambda: velocity)
        assert not waits.found
        velocity.sum().item()
    assert waits.found, "the trap catches nothing"


@pytest.fixture(scope="module")
def pipe() -> ZImagePipeline:
    parts = (NANO / f"{name}.safetensors" for name in ("transformer", "text_encoder", "autoencoder"))
    return ZImagePipeline.from_files(*parts, NANO / "tokenizer", torch_dtype=torch.float32)


def drawn(pipe: ZImagePipeline, batch: int = 1, size: int = 32, **more: object) -> Tensor:
    noise = torch.randn(batch, 16, size // 8, size // 8, generator=torch.Generator().manual_seed(SEED))
    given = {"guidance_scale": 3.0, "num_inference_steps": 20, "output_type": "latent", "latents": noise}
    prompts = ["a fox on a yellow background", "a red apple"][:batch]
    return pipe(prompts, height=size, width=size, **{**given, **more}).images


def test_a_run_without_the_cache_is_the_same_to_the_bit(pipe: ZImagePipeline) -> None:
    """As a loop of its own over the model's velocities; and so are Turbo's eight steps with the cache."""
    for steps, cached in ((20, False), (8, True)):
        made = drawn(pipe, num_inference_steps=steps, step_cache=cached)
        conditions = [Prompt(pipe.encode_prompts([text])) for text in ("a fox on a yellow background", "")]
        x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(SEED))
        sigmas = flow_sigmas(steps).tolist()
        with torch.no_grad():
            for sigma, following in pairwise(sigmas):
                each = [
                    pipe.transformer(x, torch.tensor([sigma]), condition=condition)
                    for condition in conditions
                ]
                x = euler_step(x, each[0] + 3.0 * (each[0] - each[1]), sigma, following)
        assert torch.equal(made, x)


@pytest.mark.parametrize("more", ({}, {"cfg_truncation": 0.5}, {"cfg_normalization": 1.0}), ids=str)
def test_steps_of_the_pipeline_that_the_model_does_not_run(pipe: ZImagePipeline, more: dict, caplog) -> None:
    """A cached run stays near the whole one, in a batch as well as alone, and says how many it computed."""
    calls = []
    handle = pipe.transformer.t_embedder.register_forward_hook(lambda *_: calls.append(1))
    with caplog.at_level("INFO"):
        cached = drawn(pipe, batch=2, step_cache=True, **more)
    handle.remove()
    whole = drawn(pipe, batch=2, **more)
    assert len(calls) < 20 and f"Step cache: {len(calls)} of 20 steps computed." in caplog.text
    assert relative(cached, whole) <= 0.012
    assert relative(cached[:1], drawn(pipe, step_cache=True, **more)) <= 1e-5


def test_runs_of_one_pipeline_do_not_mix(pipe: ZImagePipeline) -> None:
    first = drawn(pipe, step_cache=True)
    drawn(pipe, batch=2, size=64, step_cache=True)
    assert torch.equal(drawn(pipe, step_cache=True), first)
