"""Prompts for regions, from the node to what our MODEL predicts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.modules import attention
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from tests.core.random_models import random_s3dit, relative
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.inside.sampling import (
    SEED,
    SIZE,
    count_calls,
    from_file,
    in_windows,
    noise_of,
    prompts,
    sampled,
    stepped,
)
from zimage_core.conditions.regions import Region, Regions
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

CLOSE = 1e-5  # relative L2
NETWORK = random_s3dit(matrix.SMALL_CONFIG, SEED)
BASE, LONG, SHORT, NEGATIVE = prompts(matrix.CAPTION, 21, 40, 9, 5)
add_region = extension_module("nodes.regional").ZImageRegionalPrompt.execute
accelerated = extension_module("nodes.host.running.accelerate").accelerated


@pytest.fixture(scope="module")
def model(scratch):
    return lambda: from_file(scratch / "small.safetensors", NETWORK.state_dict())


def box(top: float, left: float, size: tuple[int, int] = SIZE) -> Tensor:
    """A mask [1, *size] of all that is below and right of these shares of it."""
    mask = torch.zeros(1, *size)
    mask[:, int(top * size[0]) :, int(left * size[1]) :] = 1.0
    return mask


RIGHT, LOW = box(0, 0.5), box(0.5, 0)


def with_region(conditioning: list, region: list, mask: Tensor, strength: float = 1.0) -> list:
    return add_region(conditioning, region, mask, strength).result[0]


def picture(patcher: ModelPatcher, positive: list, **more) -> Tensor:
    return sampled(patcher, positive, NEGATIVE, **more)


def by_library(patcher: ModelPatcher, *weights: Tensor, noise: Tensor | None = None) -> Tensor:
    """The same two Euler steps without ComfyUI; weights: of the regions LONG and SHORT."""
    regions = [
        Region(Captions.whole(c[0][0]), weight) for c, weight in zip((LONG, SHORT), weights, strict=False)
    ]
    condition = Regions(Prompt(Captions.whole(BASE[0][0])), regions)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        return NETWORK(x, sigma, condition=condition)

    return stepped(patcher, velocity, 2, noise_of() if noise is None else noise)


def test_two_regions_are_the_librarys(model) -> None:
    two = with_region(with_region(BASE, LONG, RIGHT), SHORT, LOW, 0.5)
    assert relative(picture(model(), two), by_library(model(), RIGHT, 0.5 * LOW)) <= CLOSE


def test_a_mask_in_pixels(model) -> None:
    mask = box(0, 0.5, (8 * SIZE[0], 8 * SIZE[1]))
    made = picture(model(), with_region(BASE, LONG, mask))
    assert relative(made, by_library(model(), RIGHT)) <= CLOSE


def test_an_odd_size(model) -> None:
    size = (7, 9)
    mask, noise = box(0.5, 0, size), noise_of(size)
    made = picture(model(), with_region(BASE, LONG, mask), noise=noise)
    assert relative(made, by_library(model(), mask, noise=noise)) <= CLOSE


@pytest.mark.parametrize(
    ("mask", "strength"), [(0 * RIGHT, 1.0), (RIGHT, 0.0)], ids=["empty mask", "no strength"]
)
def test_an_empty_mask_and_no_strength_are_the_prompt_alone(model, mask: Tensor, strength: float) -> None:
    made = picture(model(), with_region(BASE, LONG, mask, strength))
    assert relative(made, picture(model(), BASE)) <= CLOSE


def test_a_region_everywhere_is_its_prompt_alone(model) -> None:
    made = picture(model(), with_region(BASE, LONG, torch.ones(1, 4, 4)))
    assert relative(made, picture(model(), LONG)) <= CLOSE


def test_a_batch_each_with_its_mask(model) -> None:
    noise = noise_of(batch=2)
    made = picture(model(), with_region(BASE, LONG, torch.cat((RIGHT, LOW))), noise=noise)
    each = [by_library(model(), w, noise=noise[i : i + 1]) for i, w in enumerate((RIGHT, LOW))]
    assert relative(made, torch.cat(each)) <= CLOSE


def test_a_model_of_another_loader(model) -> None:
    fast, _ = accelerated(small_native.patcher(NETWORK.state_dict()))
    made = picture(fast, with_region(BASE, LONG, RIGHT))
    assert relative(made, by_library(model(), RIGHT)) <= CLOSE


def test_an_area_that_is_all(model) -> None:
    whole = [[c, {**given, "area": (*SIZE, 0, 0)}] for c, given in with_region(BASE, LONG, RIGHT)]
    assert relative(picture(model(), whole), by_library(model(), RIGHT)) <= CLOSE


def halves(model, left: Tensor, right: Tensor) -> Tensor:
    """What the library makes of the left and the right half of the noise, each with its own mask for LONG."""
    noise, middle = noise_of(), SIZE[1] // 2
    parts = ((left, noise[..., :middle]), (right, noise[..., middle:]))
    return torch.cat([by_library(model(), mask, noise=part) for mask, part in parts], dim=-1)


def test_a_conditioning_for_an_area_has_that_part_of_the_mask(model) -> None:
    """Two halves, each with a prompt of its own for a region; the masks are of the whole picture."""
    low, middle = box(0.5, 0.25), SIZE[1] // 2
    left, right = (
        [[c, {**given, "area": (SIZE[0], middle, 0, start)}] for c, given in with_region(BASE, LONG, mask)]
        for mask, start in ((RIGHT + low, 0), (low, middle))
    )
    made = picture(model(), [*left, *right])
    assert relative(made, halves(model, (RIGHT + low).clamp(0, 1)[..., :middle], low[..., middle:])) <= CLOSE


def test_a_context_window_has_its_part_of_the_mask(model) -> None:
    mask = box(0.5, 0.25)
    made = picture(in_windows(model(), SIZE[1] // 2), with_region(BASE, LONG, mask))
    assert relative(made, halves(model, mask[..., :6], mask[..., 6:])) <= CLOSE


@pytest.mark.parametrize(
    "negative", [NEGATIVE, with_region(NEGATIVE, SHORT, box(0, 0))], ids=["plain", "regional"]
)
def test_guidance_and_attention_patches(model, negative: list) -> None:
    """Two guided steps: a patch that compares positive and negative finds both in one batch."""
    regional = with_region(with_region(BASE, LONG, RIGHT), SHORT, LOW)
    alone, watched = model(), model()
    calls_apart, calls_together = count_calls(alone), count_calls(watched)
    watched.set_model_attn1_output_patch(lambda out, extra: out)
    apart, together = (sampled(patcher, regional, negative, cfg=3.0) for patcher in (alone, watched))
    assert relative(together, apart) <= CLOSE
    assert (calls_apart, calls_together) == ({1: 4}, {2: 2})


def test_an_attention_that_leaves_masks_out_is_not_used(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """SageAttention's fast kernels do."""
    regional = with_region(BASE, LONG, RIGHT)
    plain = picture(model(), regional)

    def sage(q, k, v, **_):
        return F.scaled_dot_product_attention(q, k, v)

    monkeypatch.setattr(attention, "sageattn", sage, raising=False)
    monkeypatch.setattr(attention, "optimized_attention_masked", attention.attention_sage)
    assert relative(picture(model(), regional), plain) <= CLOSE


def test_the_hosts_own_network_takes_no_regions() -> None:
    native = small_native.patcher(NETWORK.state_dict())
    with pytest.raises(ValueError, match="Accelerate"):
        picture(native, with_region(BASE, LONG, RIGHT))


def test_a_region_is_one_prompt_without_regions() -> None:
    with pytest.raises(ValueError, match="chain"):
        with_region(BASE, with_region(BASE, LONG, RIGHT), RIGHT)
    with pytest.raises(ValueError, match="2 prompts"):
        with_region(BASE, BASE + LONG, RIGHT)


def test_captions_of_another_text_encoder_are_refused(model) -> None:
    narrow = [[LONG[0][0][..., :7], {}]]
    with pytest.raises(ValueError, match="7 wide"):
        picture(model(), with_region(BASE, narrow, RIGHT))
