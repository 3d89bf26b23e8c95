"""Several conditions in one pass: the velocities of one after the other, without padding between them."""

from __future__ import annotations

import gc
import random
import statistics
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.copies import CopiedWeights
from bench.peak import Peak
from tests.core.peers import reference_of
from tests.core.random_models import TINY, WIDE, random_inputs, random_s3dit, randomise, relative, seeds
from zimage_core import S3DiT
from zimage_core.acceleration.small_card import PER_TOKEN, count_tokens
from zimage_core.acceleration.streaming import Streaming
from zimage_core.conditions.control import Control, ControlNet
from zimage_core.conditions.packed import Packed, in_one_pass
from zimage_core.conditions.references import References
from zimage_core.conditions.regions import Region, Regions
from zimage_core.config import ControlConfig
from zimage_core.model.hooks import BlockHook
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Condition, Prompt
from zimage_core.model.sequence import Captions, Span

(SEED,) = seeds(1)
CLOSE = 5e-6  # relative L2 in float32
THREE = replace(TINY, n_layers=3)
LENGTHS = (1, 9, 31, 32, 33, 64, 70, 130)  # caption tokens
SIZES = ((8, 12), (7, 9), (16, 16), (8, 16))  # latent cells; of the last two no patch is padding


def prompt(features: Tensor, *lengths: int) -> Prompt:
    """One caption for all latents, or as many as there are lengths."""
    return Prompt(Captions(features[: len(lengths), : max(lengths)], lengths))


def one_after_the_other(
    model: S3DiT, x: Tensor, sigma: Tensor, conditions: list[Condition], hooks: tuple = ()
) -> Tensor:
    return torch.cat([model(x, sigma, condition=condition, hooks=hooks) for condition in conditions])


@pytest.mark.parametrize("draw", seeds(12))
@torch.no_grad()
def test_the_velocities_of_one_after_the_other(draw: int) -> None:
    """Two to four conditions, one of them with regions at times, of latents that have a sigma each."""
    rng, model = random.Random(draw), random_s3dit(TINY, draw)
    size = rng.choice(SIZES)
    x, sigma, features = random_inputs(TINY, draw, batch=rng.randrange(1, 4), size=size, length=130)
    conditions = [prompt(features.roll(n, -1), rng.choice(LENGTHS)) for n in range(rng.randrange(2, 5))]
    if rng.random() < 0.5:
        region = Region(Captions.whole(features[:1, :40]), torch.rand(1, 4, 4))
        conditions[0] = Regions(conditions[0], [region])
    together = model(x, sigma, condition=Packed(conditions))
    assert relative(together, one_after_the_other(model, x, sigma, conditions)) <= CLOSE


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_captions_of_a_batch_that_pad_differently(size: tuple[int, int]) -> None:
    model = random_s3dit(TINY, SEED)
    x, sigma, features = random_inputs(TINY, SEED, batch=3, size=size, length=130)
    sigma = sigma[:1]
    conditions = [prompt(features, 130, 1, 40), prompt(features.roll(1, -1), 64, 70, 5)]
    for some in (conditions, conditions[1:]):
        (packed,) = in_one_pass(some, model, RunMemo())
        made = model(x, sigma, condition=packed)
        assert relative(made, one_after_the_other(model, x, sigma.expand(3), some)) <= CLOSE
        with pytest.raises(ValueError, match="3 sigmas for packed sequences, expected 1"):
            model(x, sigma.expand(3), condition=packed)
        with pytest.raises(ValueError, match="conditions for 4 latents"):
            model(x[[0, 1, 2, 0]], sigma, condition=packed)


class Seen(BlockHook):
    """What goes into the stacks."""

    def __init__(self) -> None:
        self.shapes: list[tuple[str, tuple]] = []
        self.masks: list[object] = []

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        self.shapes.append((stack, tuple(hidden.shape[:2])))
        self.masks += getattr(span.attend, "biases", (span.bias,))
        return hidden, span


@pytest.mark.parametrize(
    ("size", "lengths", "refined", "tokens"),
    [
        # 64 patches: the image's tokens are refined once, then they stand beside both captions
        ((16, 16), [(40,), (9,)], (1, 64), (1, 64 + 64 + 32 + 64)),
        # 24 patches and 8 learned tokens: once with each
        ((8, 12), [(40,), (9,)], (1, 2 * 32), (1, 64 + 32 + 32 + 32)),
        ((16, 16), [(40, 60), (9, 1)], (2, 64), (2, 64 + 64 + 32 + 64)),
        ((16, 16), [(40, 9), (9, 1)], (2, 64), (1, 64 + 3 * 32 + 4 * 64)),
        ((8, 12), [(40, 9)], (1, 2 * 32), (1, 64 + 32 + 2 * 32)),
    ],
)
@torch.no_grad()
def test_no_padding_but_the_models_own_and_no_mask(
    size: tuple[int, int], lengths: list[tuple[int, ...]], refined: tuple, tokens: tuple
) -> None:
    model, seen = random_s3dit(TINY, SEED), Seen()
    x, sigma, features = random_inputs(TINY, SEED, batch=len(lengths[0]), size=size, length=130)
    conditions = [prompt(features, *each) for each in lengths]
    (packed,) = in_one_pass(conditions, model, RunMemo())
    model(x, sigma[: tokens[0]], condition=packed, hooks=[seen])
    assert seen.shapes[-2:] == [("noise_refiner", refined), ("layers", tokens)]
    assert seen.masks and all(mask is None for mask in seen.masks)


@torch.no_grad()
def test_bfloat16_is_no_further_from_float64() -> None:
    """Over the error of two passes; the reference shares no code with them."""
    ratios = []
    for seed in seeds(10):
        model = random_s3dit(TINY, seed)
        x, sigma, features = random_inputs(TINY, seed, size=(8, 16), length=70)
        captions = (features[:, :70], features[:, :21])
        truth = torch.stack([reference_of(model)(x[0], float(sigma[0]), caption[0]) for caption in captions])
        model, x = model.bfloat16(), x.bfloat16()
        conditions = [Prompt(Captions.whole(caption.bfloat16())) for caption in captions]
        packed = model(x, sigma, condition=Packed(conditions))
        apart = one_after_the_other(model, x, sigma, conditions)
        ratios.append(relative(packed, truth) / relative(apart, truth))
    assert statistics.median(ratios) <= 1.05, ratios


@pytest.mark.parametrize(("routing", "layers"), [("refiner", 3), ("layers", 3), ("tokens", 1)])
@pytest.mark.parametrize("size", SIZES[1:3])
@torch.no_grad()
def test_a_control_steers_each(routing: str, layers: int, size: tuple[int, int]) -> None:
    model = random_s3dit(THREE, SEED)
    network = randomise(ControlNet(ControlConfig(replace(THREE, n_layers=layers), 16, routing)), SEED + 1)
    x, sigma, features = random_inputs(THREE, SEED, batch=2, size=size, length=70)
    hooks = (Control(network, x[:1].roll(1, -1), 0.7),)
    conditions = [prompt(features, 70), prompt(features, 21)]
    made = model(x, sigma, condition=Packed(conditions), hooks=hooks)
    assert relative(made, one_after_the_other(model, x, sigma, conditions, hooks)) <= CLOSE
    assert relative(made, model(x, sigma, condition=Packed(conditions))) > 1e-2


@torch.no_grad()
def test_each_streamed_block_is_copied_once_for_both() -> None:
    model, copied = random_s3dit(replace(TINY, n_layers=5), SEED), []
    x, sigma, features = random_inputs(TINY, SEED, length=70)
    conditions = [prompt(features, 70), prompt(features, 21)]
    for passes in (conditions, [Packed(conditions)]):
        hook, memo = Streaming(model, torch.device("cpu")), RunMemo()
        for step in range(2):
            timesteps = sigma - 0.01 * step
            with CopiedWeights(model) as copies:
                for condition in passes:
                    model(x, timesteps, condition=condition, hooks=[hook], memo=memo)
        copied.append(copies.bytes)
    apart, together = copied
    assert apart == 2 * together > 0


@torch.no_grad()
def test_a_run_keeps_what_its_steps_share() -> None:
    model, memo, seen = random_s3dit(TINY, SEED), RunMemo(), Seen()
    x, sigma, features = random_inputs(TINY, SEED, length=70)
    packed = Packed([prompt(features, 70), prompt(features, 21)])
    fresh = model(x, sigma, condition=packed)
    for _ in range(2):
        assert torch.equal(model(x, sigma, condition=packed, memo=memo, hooks=[seen]), fresh)
    stacks = [stack for stack, _ in seen.shapes]
    assert stacks == ["context_refiner"] * 2 + ["noise_refiner", "layers"] * 2


def test_gradients_are_the_sum_of_both() -> None:
    model = random_s3dit(TINY, SEED).requires_grad_(True)
    x, sigma, features = random_inputs(TINY, SEED, size=(16, 16), length=70)
    conditions = [prompt(features, 70), prompt(features, 21)]
    found = []
    for velocities in (
        model(x, sigma, condition=Packed(conditions)),
        one_after_the_other(model, x, sigma, conditions),
    ):
        model.zero_grad()
        velocities.square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert relative(*found) <= 1e-5


def test_reference_images_are_not_packed() -> None:
    config = replace(TINY, siglip_feat_dim=64)
    model = random_s3dit(config, SEED)
    x, sigma, features = random_inputs(config, SEED)
    conditions = [References.of(prompt(features, n), [x]) for n in (21, 9)]
    assert in_one_pass(conditions, model, RunMemo()) == conditions
    with pytest.raises(ValueError, match="reference images cannot be packed"):
        model(x, sigma, condition=Packed(conditions))


@pytest.mark.parametrize(("side", "length"), [(32, 70), (64, 130)])
def test_it_needs_no_more_memory_a_token(side: int, length: int) -> None:
    """As much as a card's budget counts for one condition, at every width of the 6 B model."""
    with FakeTensorMode(), torch.no_grad():
        model = S3DiT(WIDE, dtype=torch.bfloat16).requires_grad_(False)
        x = torch.empty(1, 16, side, side, dtype=model.dtype)
        features = torch.empty(1, length, WIDE.cap_feat_dim, dtype=model.dtype)
        packed = Packed([prompt(features, length), prompt(features, 9)])
        with Peak() as tracker:
            model(x, torch.ones(1), condition=packed)
        expected = PER_TOKEN * count_tokens(packed, model, x) * WIDE.dim * 2
    assert 1 <= expected / tracker.peak <= 1.6


@torch.no_grad()
def test_what_a_run_keeps_goes_with_it() -> None:
    """At once, with no cycle that a collector would have to find."""
    model, memo = random_s3dit(TINY, SEED), RunMemo()
    x, sigma, features = random_inputs(TINY, SEED, length=70)
    (packed,) = in_one_pass([prompt(features, 70), prompt(features, 21)], model, memo)
    gc.disable()
    try:
        made = [model(x, sigma, condition=each, memo=memo) for each in (packed, packed.conditions[0])]
        assert relative(made[0][:1], made[1]) <= CLOSE
        gone = weakref.ref(memo)
        del memo
        assert gone() is None
    finally:
        gc.enable()
