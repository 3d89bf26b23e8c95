"""Captions with noise: whose it is, how much, and where it is not."""

import numpy as np
import pytest
import torch

from tests.core.random_models import seeds
from zimage_core.sampling.diversity import varied


def caption(batch: int = 1, length: int = 200, width: int = 64) -> torch.Tensor:
    scale = torch.linspace(0.1, 10, width)  # channels of a language model differ this much, and more
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1)) * scale


def test_the_noise_of_a_channel_is_in_proportion_to_its_spread():
    given = caption()
    noise = varied(given, None, 0.5, [7])[0] - given[0]
    ratio = noise.std(dim=0) / given[0].std(dim=0)
    assert 0.4 < ratio.median() < 0.6 and ratio.min() > 0.3 and ratio.max() < 0.7


@pytest.mark.parametrize("seed", seeds(3))
def test_the_spread_is_the_median_deviation_of_each_channel(seed):
    """Of lopsided values, where mean, median and mode differ. 0.6745: its share of a normal deviation."""
    numbers = np.random.default_rng(seed).lognormal(0, 1.5, (101, 32))
    deviation = np.median(np.abs(numbers - np.median(numbers, axis=0)), axis=0) / 0.67448975
    given = torch.from_numpy(numbers).float()[None]
    noise = torch.randn(101, 32, generator=torch.Generator().manual_seed(seed))
    wanted = given[0] + 0.25 * torch.from_numpy(deviation).float() * noise
    torch.testing.assert_close(varied(given, None, 0.25, [seed])[0], wanted, atol=1e-4, rtol=1e-4)


def test_one_token_of_large_values_does_not_raise_the_noise():
    given = caption()
    plain = varied(given, None, 1.0, [7]) - given
    given[:, 0] *= 1000
    with_large = varied(given, None, 1.0, [7]) - given
    assert torch.allclose(plain[:, 1:].std(), with_large[:, 1:].std(), rtol=0.05)


def test_a_seed_gives_a_sample_the_same_noise_in_any_batch():
    given = caption()
    together = varied(given, None, 0.5, [3, 4])
    assert torch.equal(together[1:], varied(given, None, 0.5, [4]))
    assert not torch.allclose(together[0], together[1])


def test_several_captions_repeat_like_the_hosts():
    """And what their padding holds does not count for the spread."""
    given, mask = caption(batch=2), torch.ones(2, 200)
    mask[1, 40:] = 0
    out = varied(given, mask, 0.5, [1, 2, 3])
    assert out.shape == (3, 200, 64)
    assert torch.equal(out[1, :40], varied(given[1:, :40], None, 0.5, [2])[0])
    assert torch.equal(out[2], varied(given[:1], None, 0.5, [3])[0])


def test_without_strength_nothing_changes():
    assert torch.equal(varied(caption(), None, 0.0, [5]), caption())
