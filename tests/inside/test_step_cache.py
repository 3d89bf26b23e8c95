"""The step cache through the host's KSampler: what is left out, what stays exact, and when it is off."""

from __future__ import annotations

import comfy.context_windows as windows
import comfy.hooks
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from node_helpers import conditioning_set_values
from torch import Tensor

from nodes import KSampler
from tests.core.random_models import random_s3dit, relative
from tests.host import matrix
from tests.host.inside import extension_module
from tests.inside.sampling import SEED, SIZE, from_file, in_windows, noise_of, prompts, stepped
from zimage_core.acceleration.step_cache import StepCache
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

STEPS, COMPUTED, CFG = 20, 12, 4.0
NETWORK = random_s3dit(matrix.SMALL_CONFIG, SEED)
POSITIVE, OTHER, NEGATIVE = prompts(matrix.CAPTION, 21, 40, 21)
step_cache = extension_module("nodes.host.running.step_cache")
run_notes = extension_module("nodes.host.page.run_notes")
with_step_cache = step_cache.with_step_cache
CACHED = f"Step cache: {COMPUTED} of {STEPS} steps computed."


@pytest.fixture(scope="module")
def model(scratch) -> ModelPatcher:
    return from_file(scratch / "small.safetensors", NETWORK.state_dict())


class Run:
    """One graph of a KSampler: its latent, how often the network was called, what was said."""

    def __init__(
        self,
        patcher: ModelPatcher,
        positive: list = POSITIVE,
        steps: int = STEPS,
        sampler: str = "euler",
        noise: Tensor | None = None,
        seed: int = SEED,
        negative: list = NEGATIVE,
        **more: object,
    ) -> None:
        """more: of the latent, such as its noise_mask; and denoise."""
        denoise = more.pop("denoise", 1.0)
        latent = {"samples": torch.zeros_like(noise_of() if noise is None else noise), **more}
        network = patcher.get_model_object("diffusion_model")
        self.calls = 0
        handle = network.final_layer.register_forward_hook(self._count)
        with run_notes.collected() as found:
            inputs = (seed, steps, CFG, sampler, "simple", positive, negative, latent, denoise)
            self.latent = KSampler().sample(patcher, *inputs)[0]["samples"]
        handle.remove()
        self.notes = found.notes

    def _count(self, *_: object) -> None:
        self.calls += 1


def test_euler_is_the_librarys(model) -> None:
    conditions = [Prompt(Captions.whole(conditioning[0][0])) for conditioning in (POSITIVE, NEGATIVE)]
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS).tolist()
    cache = StepCache(sigmas)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        def guided() -> Tensor:
            wanted, unwanted = (NETWORK(x, sigma, condition=condition) for condition in conditions)
            return unwanted + CFG * (wanted - unwanted)

        return cache.velocity(guided)

    run = Run(with_step_cache(model))
    assert run.notes == [CACHED]
    assert run.calls == COMPUTED
    assert relative(run.latent, stepped(model, velocity, STEPS, noise_of())) <= 1e-5


@pytest.mark.parametrize("sampler", step_cache.PLAIN)
def test_each_sampler_stays_near_its_whole_run(model, sampler: str) -> None:
    """Nearer than the same sampler with as many steps as were computed."""
    whole, cached = Run(model, sampler=sampler), Run(with_step_cache(model), sampler=sampler)
    fewer = Run(model, sampler=sampler, steps=COMPUTED)
    assert (whole.calls, cached.calls, cached.notes) == (STEPS, COMPUTED, [CACHED])
    assert relative(cached.latent, whole.latent) <= 0.5 * relative(fewer.latent, whole.latent)


def test_runs_of_one_model_do_not_mix(model) -> None:
    """Other prompts, seeds and sizes between: the same to the bit. And the given MODEL is as it was."""
    patcher, whole = with_step_cache(model), Run(model)
    first = Run(patcher)
    Run(patcher, OTHER, noise=noise_of((12, 8), batch=2), seed=SEED + 1)
    assert torch.equal(Run(patcher).latent, first.latent)
    assert torch.equal(Run(model).latent, whole.latent) and Run(model).calls == STEPS
    assert not torch.equal(first.latent, whole.latent)


def test_each_picture_of_a_batch_is_the_one_it_is_alone(model) -> None:
    noise, patcher = noise_of(batch=2), with_step_cache(model)
    both, one = (
        comfy.sample.sample(
            patcher,
            part,
            STEPS,
            CFG,
            "euler",
            "simple",
            POSITIVE,
            NEGATIVE,
            torch.zeros_like(part),
            seed=SEED,
        )
        for part in (noise, noise[1:])
    )
    assert relative(both[1:], one) <= 1e-4


def ranged(conditioning: list, start: float, end: float) -> list:
    return conditioning_set_values(conditioning, {"start_percent": start, "end_percent": end})


def boxed(conditioning: list, area: tuple[int, ...]) -> list:
    return conditioning_set_values(conditioning, {"area": area, "strength": 1.0, "set_area_to_bounds": False})


CONDITIONINGS = {
    "two parts of the picture": boxed(POSITIVE, (8, 6, 0, 0)) + boxed(OTHER, (8, 6, 0, 6)),
    "a region": extension_module("nodes.regional").ZImageRegionalPrompt.execute(
        POSITIVE, OTHER, torch.ones(1, *SIZE).tril(), 1.0
    ).result[0],
}  # fmt: skip


@pytest.mark.parametrize("name", CONDITIONINGS)
def test_what_conditionings_do_is_within_what_is_kept(model, name: str) -> None:
    """As near as with a plain prompt."""
    positive = CONDITIONINGS[name]
    whole, cached = Run(model, positive), Run(with_step_cache(model), positive)
    fewer = Run(model, positive, steps=COMPUTED)
    assert cached.calls < whole.calls and cached.notes == [CACHED]
    assert relative(cached.latent, whole.latent) <= 0.55 * relative(fewer.latent, whole.latent)


def test_where_one_prompt_follows_another_nothing_is_carried_over(model) -> None:
    """Ten steps with the first, one with both, nine with the second: 6, 1 and 6 are computed."""
    positive = ranged(POSITIVE, 0.0, 0.5) + ranged(OTHER, 0.5, 1.0)
    cached, late = Run(with_step_cache(model), positive), Run(with_step_cache(model), ranged(OTHER, 0.5, 1.0))
    assert cached.notes == ["Step cache: 13 of 20 steps computed."]
    assert late.notes == ["Step cache: 12 of 20 steps computed."], "10 without and 10 with the prompt"
    whole, fewer = Run(model, positive), Run(model, positive, steps=13)
    assert relative(cached.latent, whole.latent) <= 0.8 * relative(fewer.latent, whole.latent)


def off(reason: str) -> list[str]:
    return [f"Step cache: off, all steps are computed: {reason}."]


NOISY = "adds noise or predicts more than once a step (use euler, res_multistep, dpmpp_2m, "


OTHER_SAMPLERS = ("euler_ancestral", "heun", "dpmpp_sde", "dpmpp_2m_sde", "uni_pc", "euler_cfg_pp")


@pytest.mark.parametrize("sampler", OTHER_SAMPLERS)
def test_other_samplers_run_as_ever(model, sampler: str) -> None:
    whole, asked = Run(model, sampler=sampler), Run(with_step_cache(model), sampler=sampler)
    assert torch.equal(asked.latent, whole.latent) and asked.calls == whole.calls
    (note,) = asked.notes
    assert note.startswith("Step cache: off, all steps are computed: ") and NOISY in note


@pytest.mark.parametrize("steps", (1, 2, 3, 8, 15))
def test_few_steps_run_as_ever(model, steps: int) -> None:
    whole, asked = Run(model, steps=steps), Run(with_step_cache(model), steps=steps)
    assert torch.equal(asked.latent, whole.latent) and asked.calls == steps
    assert asked.notes == [f"Step cache: all {steps} steps computed; it leaves some out from 16 steps on."]


def with_easy_cache(model: ModelPatcher) -> ModelPatcher:
    return EasyCacheNode.execute(model, 0.2, 0.15, 0.95, False).result[0]


def with_lazy_cache(model: ModelPatcher) -> ModelPatcher:
    return LazyCacheNode.execute(model, 0.2, 0.15, 0.95, False).result[0]


@pytest.mark.parametrize("other", (with_easy_cache, with_lazy_cache))
def test_beside_another_cache_it_is_off(model, other) -> None:
    patcher = other(model)
    whole, asked = Run(patcher), Run(with_step_cache(patcher))
    assert torch.equal(asked.latent, whole.latent)
    assert asked.notes == off("EasyCache or LazyCache is on this MODEL already")


def test_with_hooks_it_is_off(model) -> None:
    lora = {"diffusion_model.layers.0.attention.out.lora_A.weight": torch.ones(1, matrix.SMALL_CONFIG.dim)}
    lora["diffusion_model.layers.0.attention.out.lora_B.weight"] = torch.ones(matrix.SMALL_CONFIG.dim, 1)
    hooks = comfy.hooks.create_hook_lora(lora, 0.01, 0.0)
    hooked = conditioning_set_values(POSITIVE, {"hooks": hooks})
    whole, asked = Run(model, hooked), Run(with_step_cache(model), hooked)
    assert torch.equal(asked.latent, whole.latent) and asked.calls == whole.calls
    assert asked.notes == off("a conditioning has hooks, which can change the weights in mid-run")


def test_windows_that_stay_are_cached_and_windows_that_move_are_not(model) -> None:
    still = Run(with_step_cache(in_windows(model, 6)))
    assert still.notes == [CACHED]
    moving = in_windows(model, 6, context_schedule=windows.get_matching_context_schedule("standard_uniform"))
    assert Run(with_step_cache(moving)).notes == off("its context windows move from step to step")
