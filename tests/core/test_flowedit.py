"""FlowEdit against closed forms, against the paper's pseudo code, and what it must leave alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.core.random_models import TINY, random_s3dit, seeds
from zimage_core.sampling.flowedit import flow_edit
from zimage_core.sampling.schedule import euler_step, flow_sigmas

SHAPE = (2, 16, 6, 4)


def noises(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def clean(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: float, deviation: float) -> Callable[[Tensor, float], Tensor]:
    """The exact velocity E[noise - clean | z] when every clean value is normal."""

    def velocity(z: Tensor, sigma: float) -> Tensor:
        pull = (1 - sigma) * deviation**2 / ((1 - sigma) ** 2 * deviation**2 + sigma**2)
        expected = mean + pull * (z - (1 - sigma) * mean)
        return (z - expected) / sigma

    return velocity


def both(source: Callable, target: Callable) -> Callable:
    return lambda s, t, sigma: (None if s is None else source(s, sigma), target(t, sigma))


@pytest.mark.parametrize("steps", [1, 8])
def test_between_two_gaussians_the_whole_way_is_a_translation(steps: int) -> None:
    """The exact change is (1 - sigma) * (difference of the means), a straight line that each grid hits."""
    x = clean(1)
    velocities = both(gaussian(0.3, 0.8), gaussian(-1.2, 0.8))
    edited = flow_edit(x, flow_sigmas(steps).double(), velocities, noises(2))
    torch.testing.assert_close(edited, x - 1.5, atol=1e-6, rtol=0)


def test_between_two_gaussians_part_of_the_way_has_a_closed_form() -> None:
    """The change solves a linear equation whose homogeneous solution is h, the spread of a noisy value."""
    deviation, x, grid = 0.8, clean(3), flow_sigmas(4000).double()
    velocities = both(gaussian(0.3, deviation), gaussian(-1.2, deviation))
    edited = flow_edit(x, grid[-2401:], velocities, noises(4))
    start = float(grid[-2401])
    h = ((1 - start) ** 2 * deviation**2 + start**2) ** 0.5
    expected = -1.5 * (1 - (1 - start) * deviation / h)
    assert abs(expected) > 0.1
    torch.testing.assert_close(edited, x + expected, atol=2e-3, rtol=0)


@pytest.fixture(scope="module")
def network() -> Callable[[Tensor, float, Tensor], Tensor]:
    """Random weights in float64: velocity(z, sigma, caption)."""
    model = random_s3dit(TINY, seeds(1)[0]).double()

    def velocity(z: Tensor, sigma: float, caption: Tensor) -> Tensor:
        timesteps = torch.full((len(z),), sigma, dtype=torch.float64)
        return model(z, timesteps, caption.expand(len(z), -1, -1))

    return velocity


def captions(seed: int, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 9, TINY.cap_feat_dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def pseudo_code(x_src, t, v, source, target, draw, n_max, n_min, n_avg):
    """Algorithm 1 as the paper writes it: t[i] rises from t[0] = 0 to t[T] = 1."""
    z_fe = x_src.clone()
    for i in range(n_max, n_min, -1):
        v_delta = []
        for _ in range(n_avg):
            n = draw()
            z_src = (1 - t[i]) * x_src + t[i] * n
            z_tar = z_fe + z_src - x_src
            v_delta.append(v(z_tar, t[i], target) - v(z_src, t[i], source))
        z_fe = z_fe + (t[i - 1] - t[i]) * sum(v_delta) / n_avg
    if n_min == 0:
        return z_fe
    n = draw()
    z_tar = z_fe + ((1 - t[n_min]) * x_src + t[n_min] * n) - x_src
    for i in range(n_min, 0, -1):
        z_tar = z_tar + (t[i - 1] - t[i]) * v(z_tar, t[i], target)
    return z_tar


@pytest.mark.parametrize(("n_max", "n_min", "n_avg"), [(6, 0, 1), (4, 0, 3), (5, 2, 2), (3, 3, 1), (6, 1, 1)])
def test_is_the_papers_algorithm(network, n_max: int, n_min: int, n_avg: int) -> None:
    source, target = captions(5)
    sigmas, x = flow_sigmas(6).double(), clean(6)
    velocities = both(lambda z, s: network(z, s, source), lambda z, s: network(z, s, target))
    edited = flow_edit(x, sigmas[-n_max - 1 :], velocities, noises(7), n_min, n_avg)
    rising = sigmas.flip(0).tolist()
    expected = pseudo_code(x, rising, network, source, target, noises(7), n_max, n_min, n_avg)
    assert (edited - x).norm() > 0.05 * x.norm(), "it changes nothing: the comparison proves nothing"
    torch.testing.assert_close(edited, expected, atol=1e-9, rtol=1e-9)


def test_plain_sampling_alone_is_image_to_image(network) -> None:
    _, target = captions(8)
    sigmas, x, draw = flow_sigmas(5).double(), clean(9), noises(10)
    velocities = both(
        lambda z, s: pytest.fail("the source is not asked for"), lambda z, s: network(z, s, target)
    )
    edited = flow_edit(x, sigmas[-4:], velocities, noises(10), n_min=3)
    grid = sigmas[-4:].tolist()
    z = (1 - grid[0]) * x + grid[0] * draw()
    for sigma, sigma_next in zip(grid[:-1], grid[1:], strict=True):
        z = euler_step(z, network(z, sigma, target), sigma, sigma_next)
    torch.testing.assert_close(edited, z, atol=1e-5, rtol=0)  # euler_step is float32


@pytest.mark.parametrize("n_avg", [1, 3])
def test_equal_prompts_give_back_the_latent_to_the_bit(network, n_avg: int) -> None:
    caption, x = captions(11)[0], clean(12)
    velocities = both(lambda z, s: network(z, s, caption), lambda z, s: network(z, s, caption))
    assert torch.equal(flow_edit(x, flow_sigmas(4).double(), velocities, noises(13), n_avg=n_avg), x)


def test_no_steps_are_no_change() -> None:
    x = clean(14)
    velocities = both(lambda z, s: pytest.fail("nothing is to do"), lambda z, s: None)
    assert torch.equal(flow_edit(x, flow_sigmas(4)[-1:], velocities, noises(15)), x)


@pytest.mark.parametrize("n_min", [0, 2])
def test_what_the_mask_keeps_is_kept_to_the_bit(n_min: int) -> None:
    x, mask = clean(16), torch.zeros(1, 1, 6, 4, dtype=torch.float64)
    mask[..., :3, :] = 1
    velocities = both(gaussian(0.0, 1.0), gaussian(2.0, 0.5))
    sigmas = flow_sigmas(4).double()
    edited = flow_edit(x, sigmas, velocities, noises(17), n_min=n_min, mask=mask)
    whole = flow_edit(x, sigmas, velocities, noises(17), n_min=n_min)
    assert torch.equal(edited[..., 3:, :], x[..., 3:, :])
    assert torch.equal(edited[..., :3, :], whole[..., :3, :])  # this velocity looks at no neighbour
    assert not torch.equal(edited, x)


def test_steps_are_told_with_the_picture_so_far() -> None:
    seen = []
    velocities = both(gaussian(0.0, 1.0), gaussian(2.0, 0.5))
    edited = flow_edit(
        clean(18), flow_sigmas(4), velocities, noises(19), on_step=lambda step, z: seen.append((step, z))
    )
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][1], edited)


@pytest.mark.parametrize(("counts", "named"), [({"n_min": -1}, "n_min"), ({"n_avg": 0}, "n_avg")])
def test_counts_out_of_range_are_named(counts: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        flow_edit(clean(20), flow_sigmas(4), both(gaussian(0, 1), gaussian(1, 1)), noises(21), **counts)
