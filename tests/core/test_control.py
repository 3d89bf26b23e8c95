"""Control networks against diffusers' on the same random weights, in every version that exists."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.core.peers import diffusers_control_of, diffusers_controlled_velocity, diffusers_of
from tests.core.random_models import WIDE, random_inputs, random_s3dit, randomise, relative, seeds
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.conditions.control import Control, ControlNet, control_latent
from zimage_core.conditions.references import References
from zimage_core.config import ControlConfig
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.sampling.schedule import turbo_sigmas

(SEED,) = seeds(1)
BASE = S3DiTConfig(dim=64, n_layers=10, n_heads=2, cap_feat_dim=32, axes_dims=(8, 12, 12))
AS_DEEP = dataclasses.replace(BASE, n_layers=30)  # as the 6 B model
VERSIONS = {  # blocks for 30 layers, channels, routing
    "1.0": (6, 16, "tokens"),
    "2.0": (15, 33, "layers"),
    "2.1": (15, 33, "refiner"),
    "2.1 lite": (3, 33, "refiner"),
}
PLACES = {6: (0, 5, 10, 15, 20, 25), 15: tuple(range(0, 30, 2)), 3: (0, 10, 20)}


def config(version: str, base: S3DiTConfig = BASE) -> ControlConfig:
    count, channels, routing = VERSIONS[version]
    return ControlConfig(dataclasses.replace(base, n_layers=count * base.n_layers // 30), channels, routing)


def network(version: str, seed: int = SEED, base: S3DiTConfig = BASE) -> ControlNet:
    return randomise(ControlNet(config(version, base)), seed)


def picture_latent(channels: int, seed: int, batch: int = 1, size: tuple[int, int] = (6, 10)) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("version", "size", "length"),
    [*((version, (6, 10), 33) for version in VERSIONS), ("2.1", (8, 16), 32)],
)
def test_each_version_equals_diffusers(version: str, size: tuple[int, int], length: int) -> None:
    """Picture and caption both padded to 32 and 64 tokens, and neither of them."""
    model, control = random_s3dit(AS_DEEP, SEED), network(version, base=AS_DEEP)
    x, sigma, caption = random_inputs(AS_DEEP, SEED, size=size, length=length)
    latent = picture_latent(control.config.channels, SEED, size=size)
    peer = diffusers_of(model)
    theirs = diffusers_control_of(control, model, peer)
    wanted = diffusers_controlled_velocity(peer, [(theirs, latent, 0.7)], x, sigma, [caption[0]])
    ours = model(x, sigma, caption, hooks=[Control(control, latent, 0.7)])
    assert relative(ours, wanted) <= 1e-5
    assert relative(ours, model(x, sigma, caption)) > 0.1


def test_at_the_real_width() -> None:
    """dim 3840, 30 heads of 128: every layer shape of the published files, in as few layers as can be."""
    base = dataclasses.replace(WIDE, n_refiner_layers=0, cap_feat_dim=32)
    model, control = S3DiT(base, device="meta"), ControlNet(ControlConfig(base, 33, "tokens"), device="meta")
    for module in (model, control):
        fill(module)
    assert control.control_all_x_embedder["2-1"].weight.shape == (3840, 132)
    x, sigma, caption = random_inputs(base, SEED, size=(4, 6), length=9)
    latent = picture_latent(33, SEED, size=(4, 6))
    peer = diffusers_of(model)
    theirs = diffusers_control_of(control, model, peer)
    wanted = diffusers_controlled_velocity(peer, [(theirs, latent, 1.0)], x, sigma, [caption[0]])
    assert relative(model(x, sigma, caption, hooks=[Control(control, latent)]), wanted) <= 1e-5


def fill(module: nn.Module) -> None:
    """What `randomise` does, quickly: every tensor repeats the same numbers."""
    numbers = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(SEED))
    module.to_empty(device="cpu").eval().requires_grad_(False)
    for name, p in module.named_parameters():
        repeated = numbers.repeat(-(-p.numel() // len(numbers)))[: p.numel()].view_as(p)
        norm = p.ndim == 1 and not name.endswith("bias")
        p.copy_(1 + 0.1 * repeated if norm else repeated * (0.1 if p.ndim == 1 else p.shape[-1] ** -0.5))


def test_places_are_the_published_ones() -> None:
    for version, (count, _, _) in VERSIONS.items():
        assert config(version, AS_DEEP).hint_layers(AS_DEEP) == PLACES[count]
    with pytest.raises(ValueError, match="6 blocks, which 4 layers"):
        config("1.0", AS_DEEP).hint_layers(dataclasses.replace(AS_DEEP, n_layers=4))


def test_several_controls_add_their_hints() -> None:
    model = random_s3dit(BASE, SEED)
    x, sigma, caption = random_inputs(BASE, SEED, size=(6, 10))
    peer = diffusers_of(model)
    parts = [
        (network("1.0", SEED + i), picture_latent(16, SEED + i), strength)
        for i, strength in ((1, 0.9), (2, 0.4))
    ]
    theirs = [(diffusers_control_of(control, model, peer), *rest) for control, *rest in parts]
    wanted = diffusers_controlled_velocity(peer, theirs, x, sigma, [caption[0]])
    assert relative(model(x, sigma, caption, hooks=[Control(*part) for part in parts]), wanted) <= 1e-5


@pytest.mark.parametrize("version", VERSIONS)
def test_a_control_twice_is_one_of_both_strengths(version: str) -> None:
    model, control = random_s3dit(BASE, SEED), network(version)
    x, sigma, caption = random_inputs(BASE, SEED, size=(6, 10))
    latent = picture_latent(control.config.channels, SEED)
    twice = model(x, sigma, caption, hooks=[Control(control, latent, s) for s in (0.3, 0.5)])
    assert relative(twice, model(x, sigma, caption, hooks=[Control(control, latent, 0.8)])) <= 1e-5


def test_without_strength_it_is_the_model_itself() -> None:
    model, control = random_s3dit(BASE, SEED), network("2.1")
    x, sigma, caption = random_inputs(BASE, SEED, size=(6, 10))
    off = Control(control, picture_latent(33, SEED), 0.0)
    assert torch.equal(model(x, sigma, caption, hooks=[off]), model(x, sigma, caption))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_batch_equals_its_single_runs(version: str) -> None:
    """Captions of two padded lengths, two pictures for four latents of an odd size."""
    model, control = random_s3dit(BASE, SEED), network(version)
    lengths, size = (40, 9, 33, 21), (5, 10)
    x, sigma, caption = random_inputs(BASE, SEED, batch=4, size=size, length=max(lengths))
    latent = picture_latent(control.config.channels, SEED, batch=2, size=size)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    together = model(x, sigma, caption, attention_mask=mask, hooks=[Control(control, latent)])
    for i, length in enumerate(lengths):
        picture = latent[i % 2 : i % 2 + 1]
        alone = model(
            x[i : i + 1], sigma[i : i + 1], caption[i : i + 1, :length], hooks=[Control(control, picture)]
        )
        assert relative(together[i : i + 1], alone) <= 1e-5


def test_a_run_embeds_the_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps of two prompts: one embedding in all, and the modulation once a step; nothing changes."""
    model, network_ = random_s3dit(BASE, SEED), network("2.1")
    control = Control(network_, picture_latent(33, SEED))
    calls = {"embedded": 0, "modulated": 0}
    network_.control_all_x_embedder["2-1"].register_forward_hook(
        lambda *_: calls.update(embedded=calls["embedded"] + 1)
    )
    network_.control_layers[0].adaLN_modulation.register_forward_hook(
        lambda *_: calls.update(modulated=calls["modulated"] + 1)
    )
    prompts = [random_inputs(BASE, SEED + i, size=(6, 10))[2] for i in (1, 2)]
    memo, conditions = RunMemo(), [Prompt(Captions.whole(prompt)) for prompt in prompts]
    x = random_inputs(BASE, SEED, size=(6, 10))[0]
    for value in turbo_sigmas()[:-1]:
        sigma = torch.tensor([float(value)])
        outs = [model(x, sigma, condition=condition, memo=memo, hooks=[control]) for condition in conditions]
        seen = dict(calls)
        fresh = Control(network_, control.latent)
        assert torch.equal(outs[1], model(x, sigma, prompts[1], hooks=[fresh]))
        calls |= seen
    assert calls == {"embedded": 1, "modulated": 8}


def encode(pixels: torch.Tensor) -> torch.Tensor:
    """Stands for an autoencoder: 16 channels at an eighth of the size, different for different pixels."""
    return F.avg_pool2d(pixels, 8).repeat(1, 6, 1, 1)[:, :16]


def test_the_latent_of_a_plain_control_is_its_picture_alone() -> None:
    picture = torch.rand(2, 3, 32, 48)
    assert torch.equal(control_latent(encode, 16, picture), encode(picture))


def test_the_latent_without_anything_to_inpaint_is_grey_and_keeps_nothing() -> None:
    picture = torch.rand(1, 3, 32, 48)
    known, keep, shown = control_latent(encode, 33, picture).split((16, 1, 16), dim=1)
    assert torch.equal(known, encode(picture))
    assert not keep.any()
    assert torch.equal(shown, encode(torch.full_like(picture, 0.5)))


def test_the_latent_to_inpaint_hides_what_is_repainted() -> None:
    """The left half is repainted: grey there, and the mask channel 0; the soft edge counts from one half."""
    picture, scene = torch.rand(1, 3, 32, 48), torch.rand(2, 3, 32, 48)
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., :16] = 0.6
    mask[..., 16:24] = 0.5
    mask[..., 24:32] = 0.499
    known, keep, shown = control_latent(encode, 33, picture, scene, mask).split((16, 1, 16), dim=1)
    assert torch.equal(known, encode(picture).expand(2, -1, -1, -1))
    assert torch.equal(keep, torch.tensor([0.0, 0, 0, 1, 1, 1]).expand(2, 1, 4, 6))
    assert torch.equal(shown[..., 3:], encode(scene)[..., 3:])
    assert torch.allclose(shown[..., :3], torch.tensor(0.5))
    assert not control_latent(encode, 33, None, scene, mask)[:, :16].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 128, "axes_dims": (16, 24, 24)}, "dim 64, this model has 128"),
        ({"n_refiner_layers": 1}, "steers 2 refiner blocks, this model has 1"),
        ({"n_layers": 6}, "5 blocks, which 6 layers"),
    ],
)
def test_a_control_of_another_transformer_is_refused(change: dict, message: str) -> None:
    other = dataclasses.replace(BASE, ffn_dim=None, t_dim=None, **change)
    model = random_s3dit(other, SEED)
    x, sigma, caption = random_inputs(other, SEED, size=(6, 10))
    with pytest.raises(ValueError, match=message):
        model(x, sigma, caption, hooks=[Control(network("2.1"), picture_latent(33, SEED))])


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ((1, 16, 6, 10), r"shape \(1, 16, 6, 10\), expected \[b, 33, 6, 10\]"),
        ((1, 33, 8, 10), r"expected \[b, 33, 6, 10\]"),
        ((2, 33, 6, 10), "2 control pictures do not divide 1 latents"),
    ],
)
def test_a_latent_that_does_not_fit_is_refused(latent: tuple, message: str) -> None:
    model = random_s3dit(BASE, SEED)
    x, sigma, caption = random_inputs(BASE, SEED, size=(6, 10))
    with pytest.raises(ValueError, match=message):
        model(x, sigma, caption, hooks=[Control(network("2.1"), torch.zeros(latent))])


def test_a_control_beside_reference_images_is_refused() -> None:
    base = dataclasses.replace(BASE, siglip_feat_dim=24)
    model, control = random_s3dit(base, SEED), network("2.1", base=base)
    x, sigma, caption = random_inputs(base, SEED, size=(6, 10))
    condition = References.of(Prompt(Captions.whole(caption)), [torch.zeros(1, 16, 6, 10)])
    with pytest.raises(ValueError, match="a control does not go with reference images"):
        model(x, sigma, condition=condition, hooks=[Control(control, picture_latent(33, SEED))])
