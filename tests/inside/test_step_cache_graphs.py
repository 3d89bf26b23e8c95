"""The step cache beside what else a graph has: control, references, LoRAs, masks, sigmas of its own."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from tests.core.lora_files import DIALECTS, write
from tests.core.random_models import relative
from tests.host.inside import extension_module
from tests.inside import test_control, test_omni
from tests.inside.sampling import SEED, SIZE, from_file, noise_of
from tests.inside.test_step_cache import CACHED, CFG, COMPUTED, NEGATIVE, NETWORK, POSITIVE, STEPS, Run, off

FEWER = 0.75  # of the distance of a run with as many steps as were computed
speed = extension_module("nodes.host.running.speed")
lora = extension_module("nodes.host.running.lora")
read_lora = extension_module("zimage_core.weights").read_lora
run_notes = extension_module("nodes.host.page.run_notes")


def cached(model: ModelPatcher) -> ModelPatcher:
    return speed.sped_up(model, "cache")[0]


@pytest.fixture(scope="module")
def model(scratch: Path) -> ModelPatcher:
    return from_file(scratch / "small.safetensors", NETWORK.state_dict())


@pytest.fixture(scope="module")
def steered(model: ModelPatcher, scratch: Path):
    """The MODEL with a control of a picture between these parts of a run."""
    path = scratch / "control.safetensors"
    save_file({k: v.contiguous() for k, v in test_control.published("2.1").items()}, path)

    def made(start: float, end: float, picture: Tensor = test_control.PICTURES[:1]) -> ModelPatcher:
        control, host = test_control.host_load(path), test_control.host
        patch = host.ZImageControlPatch(control, test_control.PooledVAE(), picture, 0.8)
        patch.percents = (start, end)
        return host.controlled(model, patch)

    return made


@pytest.mark.parametrize(("start", "end", "computed"), [(0.0, 1.0, COMPUTED), (0.0, 0.35, 13)])
def test_control_is_within_what_is_kept(steered, start: float, end: float, computed: int) -> None:
    """As near as without; where it ends, nothing of it is carried on."""
    model = steered(start, end)
    whole, some, fewer = Run(model), Run(cached(model)), Run(model, steps=computed)
    assert some.notes == [f"Step cache: {computed} of {STEPS} steps computed."]
    assert (whole.calls, some.calls) == (STEPS, computed)
    assert relative(some.latent, whole.latent) <= FEWER * relative(fewer.latent, whole.latent)


def test_nothing_of_one_control_picture_reaches_the_next_run(steered) -> None:
    first, other = (cached(steered(0.0, 1.0, test_control.PICTURES[i : i + 1])) for i in range(2))
    before = Run(first)
    assert not torch.equal(Run(other).latent, before.latent)
    assert torch.equal(Run(first).latent, before.latent)


def test_references_are_within_what_is_kept(scratch: Path) -> None:
    omni = from_file(scratch / "omni.safetensors", test_omni.NETWORK.state_dict())
    scale = omni.model.process_latent_out
    positive, negative = (test_omni.conditioning(p, scale) for p in (test_omni.POSITIVE, test_omni.NEGATIVE))
    whole, some = (Run(each, positive, negative=negative) for each in (omni, cached(omni)))
    fewer = Run(omni, positive, negative=negative, steps=COMPUTED)
    plain = Run(omni, test_omni.POSITIVE, negative=test_omni.NEGATIVE)
    assert some.notes == [CACHED] and some.calls < whole.calls
    near = relative(some.latent, whole.latent)
    assert near <= FEWER * relative(fewer.latent, whole.latent)
    assert near < relative(plain.latent, whole.latent), "the references change less than the cache"


def test_a_lora_before_it_or_behind_it(model) -> None:
    """The same to the bit in either order, and near the whole run with the LoRA."""
    written = write(NETWORK.state_dict(), DIALECTS["musubi"], SEED, size=0.1)
    use = lora.LoraUse("file", read_lora(written.tensors, written.metadata), 1.0, 1.0)

    def changed(patcher: ModelPatcher) -> ModelPatcher:
        return lora.with_loras(patcher, None, [use])[0]

    whole, fewer = Run(changed(model)), Run(changed(model), steps=COMPUTED)
    before, behind = Run(cached(changed(model))), Run(changed(cached(model)))
    assert before.notes == behind.notes == [CACHED]
    assert torch.equal(before.latent, behind.latent)
    assert relative(before.latent, whole.latent) <= FEWER * relative(fewer.latent, whole.latent)
    assert torch.equal(Run(cached(model)).latent, Run(cached(model)).latent), "the LoRA is gone again"


def test_the_node_twice_is_the_node_once(model) -> None:
    once, twice = Run(cached(model)), Run(cached(cached(model)))
    assert torch.equal(twice.latent, once.latent)
    assert (twice.calls, twice.notes) == (COMPUTED, [CACHED])


def test_a_cancelled_run_leaves_nothing_behind(model) -> None:
    patcher, noise = cached(model), noise_of()
    before = Run(patcher)

    def cancel(step: int, *_: object) -> None:
        if step == 9:
            raise management.InterruptProcessingException

    with pytest.raises(management.InterruptProcessingException):
        comfy.sample.sample(
            patcher, noise, STEPS, CFG, "euler", "simple", POSITIVE, NEGATIVE, torch.zeros_like(noise),
            callback=cancel, seed=SEED + 1,
        )  # fmt: skip
    assert torch.equal(Run(patcher).latent, before.latent)


def picture(seed: int = SEED + 7) -> Tensor:
    return noise_of(seed=seed) / 2


@pytest.mark.parametrize("denoise", (0.85, 0.5))
def test_from_a_picture(model, denoise: float) -> None:
    given = {"samples": picture(), "denoise": denoise}
    whole, some = Run(model, **given), Run(cached(model), **given)
    fewer = Run(model, steps=COMPUTED, **given)
    assert (some.calls, some.notes) == (COMPUTED, [CACHED])
    assert relative(some.latent, whole.latent) <= FEWER * relative(fewer.latent, whole.latent)


def test_with_a_mask_what_is_kept_stays_to_the_bit(model) -> None:
    """And what is painted is as near as without one."""
    mask = torch.zeros(1, 1, SIZE[0] * 8, SIZE[1] * 8)
    mask[..., 48:] = 1.0
    given = {"samples": picture(), "noise_mask": mask}
    whole, some = Run(model, **given), Run(cached(model), **given)
    fewer = Run(model, steps=COMPUTED, **given)
    assert (some.calls, some.notes) == (COMPUTED, [CACHED])
    assert torch.equal(some.latent[..., :5], whole.latent[..., :5])
    assert relative(some.latent, whole.latent) <= FEWER * relative(fewer.latent, whole.latent)


class Custom:
    """A run of given sigmas: latent and notes."""

    def __init__(self, patcher: ModelPatcher, sigmas: Tensor, **options: float) -> None:
        noise = noise_of()
        euler = comfy.samplers.ksampler("euler", options)
        inputs = (CFG, euler, sigmas, POSITIVE, NEGATIVE, torch.zeros_like(noise))
        with run_notes.collected() as found:
            self.latent = comfy.sample.sample_custom(patcher, noise, *inputs, seed=SEED)
        self.notes = found.notes


@pytest.mark.parametrize("last", (0.0, 0.3))
def test_sigmas_of_ones_own(model, last: float) -> None:
    """Down to the picture, or left half way for another sampler."""
    sigmas, fewer = (last + (1 - last) * torch.linspace(1, 0, n + 1) ** 1.5 for n in (STEPS, COMPUTED))
    some, whole = Custom(cached(model), sigmas), Custom(model, sigmas)
    assert some.notes == [CACHED]
    away = relative(Custom(model, fewer).latent, whole.latent)
    assert relative(some.latent, whole.latent) <= FEWER * away


OTHER_SIGMAS = {
    "up": torch.linspace(0.1, 0.9, STEPS + 1),
    "a level twice": torch.cat((torch.linspace(1, 0.5, STEPS), torch.linspace(0.5, 0, STEPS))),
    "of another family": torch.linspace(14.6, 0, STEPS + 1),
}


@pytest.mark.parametrize("name", OTHER_SIGMAS)
def test_sigmas_that_it_is_not_for_run_as_ever(model, name: str) -> None:
    whole, asked = (Custom(each, OTHER_SIGMAS[name]) for each in (model, cached(model)))
    assert torch.equal(asked.latent, whole.latent)
    assert asked.notes == off("its sigmas do not fall from step to step between 1 and 0")


def test_euler_that_adds_noise_runs_as_ever(model) -> None:
    sigmas = torch.linspace(1, 0, STEPS + 1)
    whole, asked = (Custom(each, sigmas, s_churn=2.0) for each in (model, cached(model)))
    assert torch.equal(asked.latent, whole.latent)
    (note,) = asked.notes
    assert "off" in note and "adds noise" in note


@pytest.mark.parametrize(("spread", "turbo"), ((0.2, True), (0.6, False)))
def test_turbo_is_told_from_base_by_its_weights(scratch, monkeypatch, spread: float, turbo: bool) -> None:
    """The host tells them so, to choose float16: by the spread of one norm."""
    key = f"layers.{NETWORK.config.n_layers - 2}.ffn_norm1.weight"
    norm = torch.randn(NETWORK.config.dim, generator=torch.Generator().manual_seed(SEED))
    norm = 1 + spread * (norm - norm.mean()) / norm.std(unbiased=False)
    patcher = from_file(scratch / f"{spread}.safetensors", {**NETWORK.state_dict(), key: norm})
    on = ["Step cache: on, for 16 steps and more; each run says how many it computed."]
    assert speed.sped_up(patcher, "cache")[1] == on, "a small model is neither"
    with monkeypatch.context() as as_large:
        as_large.setattr(type(patcher.model.diffusion_model.config), "full_size", True)
        faster, lines = speed.sped_up(patcher, "cache")
    if turbo:
        assert lines[0].startswith("Step cache: off, this is Turbo, whose few steps are all needed.")
        assert Run(faster).notes == []
    else:
        assert lines == on
