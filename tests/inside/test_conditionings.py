"""Several conditionings in one run: parts of the picture, masks, ranges of steps and repeats, in batches.

The host runs them in as few calls as they allow; what a run keeps must be each one's own.
"""

from __future__ import annotations

import random

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from tests.core.random_models import random_s3dit, relative, seeds
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.inside.sampling import SEED, from_file, noise_of, prompts, sampled

NETWORK = random_s3dit(matrix.SMALL_CONFIG, SEED)
CLOSE = 1e-5  # relative L2
SIDE = 16  # latent cells
LEFT, RIGHT = (SIDE, 8, 0, 0), (SIDE, 8, 0, 8)  # height, width, top, left
accelerated = extension_module("nodes.host.running.accelerate").accelerated
with_region = extension_module("nodes.regional").ZImageRegionalPrompt.execute


@pytest.fixture(scope="module")
def model(scratch) -> ModelPatcher:
    return from_file(scratch / "small.safetensors", NETWORK.state_dict())


def drawn(rng: random.Random, whole: bool) -> list:
    """A conditioning of the host; whole: for all of the picture at all steps."""
    ((caption, values),) = prompts(matrix.CAPTION, rng.choice((1, 20, 32, 33, 40, 70)))[0]
    caption = caption.roll(rng.randrange(1, 99), dims=-1)
    if whole:
        return [caption, values]
    place = rng.choice(("area", "mask", "steps"))
    if place == "area":
        top, left = rng.randrange(SIDE - 7), rng.randrange(SIDE - 7)
        values = {"area": (8, 8, top, left), "strength": rng.choice((0.5, 1.0, 2.0))}
    elif place == "mask":
        mask = torch.zeros(1, SIDE, SIDE)
        mask[:, rng.randrange(8) :, : rng.randrange(4, SIDE)] = 0.75
        values = {"mask": mask, "set_area_to_bounds": rng.random() < 0.5}
    else:
        values = {"start_percent": rng.choice((0.0, 0.3)), "end_percent": rng.choice((0.6, 1.0))}
    return [caption, values]


@pytest.mark.parametrize("draw", seeds(5))
def test_the_same_as_on_the_hosts_own(model, draw: int) -> None:
    """Combinations drawn at random, of one to three pictures; also by Accelerate."""
    rng = random.Random(draw)
    positive = [drawn(rng, True), *(drawn(rng, False) for _ in range(3))]
    negative = [drawn(rng, True), *(drawn(rng, False) for _ in range(rng.randrange(2)))]
    noise = noise_of((SIDE, SIDE), rng.randrange(1, 4))

    def picture(patcher: ModelPatcher) -> Tensor:
        return sampled(patcher, positive, negative, steps=3, cfg=3.0, noise=noise)

    native = picture(small_native.patcher(NETWORK.state_dict()))
    assert relative(picture(model), native) <= CLOSE
    assert relative(picture(accelerated(small_native.patcher(NETWORK.state_dict()))[0]), native) <= CLOSE


def test_a_negative_with_regions_beside_parts_of_the_positive(model) -> None:
    """The host takes the negative for each part too, which is as if it were given for each."""
    base, left, right, plain, region = prompts(matrix.CAPTION, 21, 40, 9, 5, 30)
    mask = torch.linspace(0, 1, SIDE).expand(1, SIDE, SIDE)
    ((caption, values),) = with_region(plain, region, mask, 1.0).result[0]
    parts = [base[0], [left[0][0], {"area": LEFT}], [right[0][0], {"area": RIGHT}]]
    once, each = ([[caption, {**values, **place}] for place in places]
                  for places in ([{}], [{}, {"area": LEFT}, {"area": RIGHT}]))  # fmt: skip
    made, expected = (
        sampled(model, parts, negative, cfg=3.0, noise=noise_of((SIDE, SIDE))) for negative in (once, each)
    )
    assert relative(made, expected) <= CLOSE
