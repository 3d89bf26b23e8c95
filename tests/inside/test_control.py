"""Control networks steer our MODEL as the library does, under the host's memory, guidance and batches."""

from __future__ import annotations

import dataclasses
import logging
import runpy
from pathlib import Path

import comfy.latent_formats
import comfy.model_management as management
import comfy.sample
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_torch_compile import TorchCompileModel
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import random_s3dit, randomise, relative
from tests.core.test_no_waiting import NoWaiting
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.host.server import TEST_PACKS
from tests.host.weight_files import fp8
from tests.inside.sampling import SEED, SIZE, count_calls, from_file, noise_of, prompts, sampled
from zimage_core.conditions.control import Control, ControlNet, control_latent
from zimage_core.config import ControlConfig
from zimage_core.weights import load_control

CLOSE = 1e-5  # relative L2
CONFIG = matrix.SMALL_CONFIG  # which the host's own network has too
NETWORK = random_s3dit(CONFIG, SEED)
VERSIONS = {"1.0": (2, 16, "tokens"), "2.0": (2, 33, "layers"), "2.1": (1, 33, "refiner")}
FLUX = comfy.latent_formats.Flux()
POSITIVE, NEGATIVE = prompts(matrix.CAPTION, 21, 9)
HEIGHT, WIDTH = SIZE[0] * 8, SIZE[1] * 8
random_pictures = torch.rand(3, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(SEED))
PICTURES, SCENE = random_pictures[:2], random_pictures[2:]
MASK = torch.zeros(1, HEIGHT, WIDTH)
MASK[:, :, 40:] = 1.0

host = extension_module("nodes.host.running.control")
host_load = extension_module("nodes.host.loading.control").load_control
accelerated = extension_module("nodes.host.running.accelerate").accelerated


def random_control(version: str) -> ControlNet:
    count, channels, routing = VERSIONS[version]
    blocks = dataclasses.replace(CONFIG, n_layers=count)
    return randomise(ControlNet(ControlConfig(blocks, channels, routing)), SEED + 1)


def published(version: str) -> dict[str, Tensor]:
    """As a file of that version lies on the disk."""
    state = random_control(version).state_dict()
    if version == "2.0":
        refiner = random_control("2.1").state_dict()
        refiner = {k: v for k, v in refiner.items() if k.startswith("control_noise_refiner.")}
        state |= {k: v * (".after_proj." not in k) for k, v in refiner.items()}
    return state


def quantised() -> dict[str, dict[str, Tensor]]:
    """Version 2.1 as others store it."""
    state = published("2.1")
    mark = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    return {
        "bf16": {k: v.bfloat16() for k, v in state.items()},
        "scaled fp8": fp8(state, "scale_weight", {})
        | {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)},
        "comfy_quant": fp8(state, "weight_scale", {"comfy_quant": mark}),
        "fp8 without scales": {
            k: v.to(torch.float8_e4m3fn if v.ndim == 2 else torch.bfloat16) for k, v in state.items()
        },
    }


@pytest.fixture(autouse=True, scope="module")
def files(scratch: Path) -> Path:
    """The folder of all controls: {version}.safetensors, {quantisation}.safetensors, wide.safetensors."""
    wide = dataclasses.replace(CONFIG, dim=512, n_heads=4, ffn_dim=None, t_dim=None, n_layers=1)
    states = {version: published(version) for version in VERSIONS} | quantised()
    states["wide"] = ControlNet(ControlConfig(wide, 16, "tokens")).state_dict()
    for name, state in states.items():
        save_file({k: v.contiguous() for k, v in state.items()}, scratch / f"{name}.safetensors")
    return scratch


@pytest.fixture(scope="module")
def model(scratch: Path):
    return lambda: from_file(scratch / "model.safetensors", NETWORK.state_dict())


def loaded_models() -> list[torch.nn.Module]:
    """What the host has loaded and not lost: its list has None where a MODEL is gone."""
    return [patcher.model for patcher in management.loaded_models() if patcher is not None]


class PooledVAE:
    """Sixteen channels of means, and a record of who was loaded at each use."""

    def __init__(self) -> None:
        self.uses: list[tuple[tuple[int, ...], list[str]]] = []

    def spacial_compression_encode(self) -> int:
        return 8

    def encode(self, pixels: Tensor) -> Tensor:
        self.uses.append((tuple(pixels.shape), [type(model).__name__ for model in loaded_models()]))
        return F.avg_pool2d(pixels.movedim(-1, 1), 8).repeat(1, 6, 1, 1)[:, :16]


def library_encode(pixels: Tensor) -> Tensor:
    return FLUX.process_in(PooledVAE().encode(pixels.movedim(1, -1)))


@pytest.fixture(scope="module")
def steered(files: Path):
    """steered(MODEL, file, ...) -> it with a control, of the first picture at strength 0.8 unless told."""

    def patched(
        patcher: ModelPatcher, file="2.1", vae=None, strength=0.8, start=0.0, end=1.0, image=PICTURES[:1],
        inpaint=False,
    ) -> ModelPatcher:  # fmt: skip
        control = host_load(files / f"{file}.safetensors")
        more = (SCENE, MASK) if inpaint else ()
        patch = host.ZImageControlPatch(control, vae or PooledVAE(), image, strength, *more)
        patch.percents = (start, end)
        return host.controlled(patcher, patch)

    return patched


def host_velocity(patcher: ModelPatcher) -> Tensor:
    """Of one step from pure noise straight to the picture."""
    noise, euler = noise_of(), comfy.samplers.sampler_object("euler")
    inputs = (1.0, euler, torch.tensor([1.0, 0.0]), POSITIVE, NEGATIVE, torch.zeros_like(noise))
    return noise - FLUX.process_in(comfy.sample.sample_custom(patcher, noise, *inputs, disable_pbar=True))


def library_velocity(file: Path, inpaint: bool = False) -> Tensor:
    control = load_control(file, dtype=torch.float32)
    more = (SCENE.movedim(-1, 1), MASK[:, None]) if inpaint else (None, None)
    latent = control_latent(library_encode, control.config.channels, PICTURES[:1].movedim(-1, 1), *more)
    return NETWORK(noise_of(), torch.ones(1), POSITIVE[0][0], hooks=[Control(control, latent, 0.8)])


def control_of(patcher: ModelPatcher) -> ControlNet:
    return patcher.model_options["transformer_options"]["patches"][host.CONTROLS][0].network


@pytest.mark.parametrize(
    ("version", "inpaint"),
    [("1.0", False), ("2.0", False), ("2.0", True), ("2.1", False), ("2.1", True)],
)
def test_every_version_is_what_the_library_makes_of_it(model, steered, files, version, inpaint) -> None:
    """Which is held to diffusers: picture, mask and inpaint picture from the node's inputs on."""
    made = host_velocity(steered(model(), version, inpaint=inpaint))
    assert relative(made, library_velocity(files / f"{version}.safetensors", inpaint)) <= CLOSE


@pytest.mark.parametrize("name", ["bf16", "scaled fp8", "comfy_quant", "fp8 without scales"])
def test_quantised_files_stand_for_their_weights(model, steered, files, name: str) -> None:
    made = host_velocity(steered(model(), name))
    assert relative(made, library_velocity(files / f"{name}.safetensors")) <= CLOSE


@pytest.mark.parametrize("version", VERSIONS)
def test_one_call_for_prompts_of_different_lengths(model, steered, version: str) -> None:
    """They pad to 96 and 32; a wrapper has the host call for each by itself."""
    (long,) = prompts(matrix.CAPTION, 70)
    together, apart = (steered(model(), version, image=PICTURES) for _ in range(2))
    calls, seen = count_calls(apart), []
    handle = together.model.diffusion_model.register_forward_hook(lambda *_: seen.append(1))
    made = sampled(together, long, NEGATIVE, cfg=3.0, noise=noise_of(batch=2))
    handle.remove()
    assert relative(made, sampled(apart, long, NEGATIVE, cfg=3.0, noise=noise_of(batch=2))) <= CLOSE
    assert (len(seen), calls) == (2, {1: 4})


def test_each_sample_of_a_guided_batch_has_its_own_picture(model, steered) -> None:
    """Two guided pictures at once, prompts of different lengths, against one at a time."""
    noise = noise_of(batch=2)
    together, *alone = (
        sampled(steered(model(), image=PICTURES[part]), POSITIVE, NEGATIVE, cfg=3.0, noise=noise[part])
        for part in (slice(2), slice(1), slice(1, 2))
    )
    assert relative(together, torch.cat(alone)) <= CLOSE


def test_pictures_are_encoded_once_and_before_the_model_is_loaded(model, steered) -> None:
    """In two guided runs of eight steps.

    The picture and the grey of 2.1 are encoded once, each prompt of each run is embedded at most once,
    and the weights are loaded through the host at each step.
    """
    vae = PooledVAE()
    patcher = steered(model(), vae=vae)
    control = control_of(patcher)
    embedded, loaded = [], []
    control.control_all_x_embedder["2-1"].register_forward_hook(lambda *_: embedded.append(1))
    control.control_layers[0].register_forward_hook(
        lambda *_: loaded.append(any(model is control for model in loaded_models()))
    )
    management.unload_all_models()
    sampled(patcher, POSITIVE, NEGATIVE, steps=8, cfg=3.0)
    assert [names for _, names in vae.uses] == [[], []]
    sampled(patcher, POSITIVE, NEGATIVE, steps=8, cfg=3.0, seed=SEED + 1)
    assert len(vae.uses) == 2
    assert 0 < len(embedded) <= 4
    assert loaded and all(loaded)


@pytest.mark.parametrize(
    ("start", "end", "steps"), [(0.0, 1.0, 8), (0.0, 0.5, 4), (0.5, 1.0, 4), (0.0, 0.0, 0), (1.0, 1.0, 0)]
)
def test_it_steers_between_start_and_end_only(model, steered, start: float, end: float, steps: int) -> None:
    """Of eight steps, how many a control takes part in, and whether it changes anything."""
    patcher, calls = steered(model(), start=start, end=end), []
    control_of(patcher).control_layers[0].register_forward_hook(lambda *_: calls.append(1))
    made, plain = (sampled(each, POSITIVE, NEGATIVE, steps=8) for each in (patcher, model()))
    assert len(calls) == steps
    assert torch.equal(made, plain) == (steps == 0)


def cached_before(patcher: ModelPatcher) -> ModelPatcher:
    """What leaves steps out of a run, put on a MODEL before its control."""
    return extension_module("nodes.host.running.step_cache").with_step_cache(patcher)


def lazy_before(patcher: ModelPatcher) -> ModelPatcher:
    """Another node's: it leaves predictions out where no step cache of ours can tell."""
    clone, calls = patcher.clone(), []

    def every_other(executor, x, *args, **kwargs):
        calls.append(1)
        return x * 0.9 if len(calls) % 2 else executor(x, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "every_other", every_other)
    return clone


@pytest.mark.parametrize(
    ("before", "sampler", "steps", "waits"),
    [
        (None, "dpmpp_2m", 6, False),
        (cached_before, "euler", 16, False),
        (lazy_before, "euler", 6, True),
        (None, "heun", 4, True),
    ],
)
def test_steps_know_whether_it_steers_without_waiting(
    model, steered, monkeypatch: pytest.MonkeyPatch, before, sampler: str, steps: int, waits: bool
) -> None:
    """In guided steps; where others predict more or less often than once a step, the sigma is read."""
    start, end, seen, waited = 0.25, 0.75, [], []
    patcher = steered(before(model()) if before else model(), start=start, end=end)
    at = host.ZImageControlPatch.at

    def watched(*args):
        try:
            with NoWaiting():
                made = at(*args)
        except AssertionError:
            waited.append(1)
            made = at(*args)
        seen.append((float(args[2]["sigmas"][0]), made is not None))
        return made

    monkeypatch.setattr(host.ZImageControlPatch, "at", watched)
    inputs = (steps, 3.0, sampler, "simple", POSITIVE, NEGATIVE, torch.zeros_like(noise_of()))
    comfy.sample.sample(patcher, noise_of(), *inputs, disable_pbar=True, seed=SEED)
    sampling = patcher.get_model_object("model_sampling")
    first, last = (sampling.percent_to_sigma(percent) for percent in (start, end))
    assert {steers for _, steers in seen} == {True, False}
    assert all(steers == (last < sigma - 1e-5 <= first) for sigma, steers in seen)
    assert bool(waited) == waits


def test_no_strength_is_the_model_itself(model, steered) -> None:
    off, plain = (
        sampled(patcher, POSITIVE, NEGATIVE, steps=8) for patcher in (steered(model(), strength=0.0), model())
    )
    assert torch.equal(off, plain)


def test_clones_share_network_and_pictures(model, steered) -> None:
    """Older hosts copy a MODEL's patches with each clone."""
    patcher = steered(model())
    one, other = (
        each.model_options["transformer_options"]["patches"][host.CONTROLS][0]
        for each in (patcher, patcher.clone())
    )
    assert one.model_patch is other.model_patch and one.vae is other.vae and one.image is other.image


def test_the_hosts_own_network_needs_accelerate(steered, files) -> None:
    native = small_native.patcher(dict(NETWORK.state_dict()))
    with pytest.raises(ValueError, match="NextDiT") as error:
        steered(native)
    assert "Z-Image Accelerate" in str(error.value)
    made = host_velocity(steered(accelerated(native)[0]))
    assert relative(made, library_velocity(files / "2.1.safetensors")) <= CLOSE


def test_a_control_of_another_width_is_refused_at_the_node(model, steered) -> None:
    with pytest.raises(ValueError, match="dim 512, this model has 256"):
        steered(model(), "wide")


def test_chained_controls_add_up(model, steered) -> None:
    """The same control twice is one of both strengths."""
    twice = steered(steered(model(), strength=0.3), strength=0.5)
    assert relative(host_velocity(twice), host_velocity(steered(model(), strength=0.8))) <= CLOSE


def test_compiled_it_is_the_same(model, steered) -> None:
    plain = steered(model(), end=0.8)
    compiled = TorchCompileModel.execute(steered(model(), end=0.8), "eager").result[0]
    made, expected = (sampled(patcher, POSITIVE, NEGATIVE, steps=4, cfg=3.0) for patcher in (compiled, plain))
    assert relative(made, expected) <= CLOSE


def test_streamed_it_is_the_same(model, steered, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """With nearly no memory for weights."""
    plain = host_velocity(steered(model()))
    management.unload_all_models()
    loaded_model = management.LoadedModel
    monkeypatch.setattr(loaded_model, "model_load", loaded_model.model_load)  # as it is again afterwards
    monkeypatch.setenv("STREAM_ON_CPU", "--novram")
    runpy.run_path(str(TEST_PACKS / "stream_on_cpu.py"))
    with caplog.at_level(logging.INFO):
        assert relative(host_velocity(steered(model())), plain) == 0
    assert "loaded partially" in caplog.text, "nothing was streamed: this proves nothing"
    management.unload_all_models()
