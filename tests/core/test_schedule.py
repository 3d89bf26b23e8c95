"""Sigma grids and guidance against the published table, diffusers' scheduler and its pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from zimage_core.sampling.guidance import Guidance
from zimage_core.sampling.schedule import flow_sigmas, strength_sigmas, turbo_sigmas

TABLE = {  # shift 3 but for the last
    (4, 3.0): [1, 0.9, 0.75, 0.5],
    (6, 3.0): [1, 0.9375, 0.857143, 0.75, 0.6, 0.375],
    (8, 3.0): [1, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3],
    (9, 3.0): [1, 0.96, 0.913043, 0.857143, 0.789474, 0.705882, 0.6, 0.461538, 0.272727],
    (8, 6.0): [1, 0.976744, 0.947368, 0.909091, 0.857143, 0.782609, 0.666667, 0.461538],
}


@pytest.mark.parametrize(("steps", "shift"), TABLE)
def test_published_grids(steps: int, shift: float) -> None:
    expected = torch.tensor([*TABLE[steps, shift], 0.0])
    torch.testing.assert_close(flow_sigmas(steps, shift), expected, atol=5e-7, rtol=0)


@pytest.mark.parametrize("steps", [1, 8, 28, 50])
def test_equals_diffusers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    torch.testing.assert_close(flow_sigmas(steps), scheduler.sigmas, atol=2e-7, rtol=0)


@pytest.mark.parametrize("steps", [8, 9])
def test_turbo_equals_diffusers(steps: int) -> None:
    """As the official pipeline sets it up: shift 3, sigmas evenly from 1 to 1 / steps."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    sigmas = turbo_sigmas() if steps == 8 else turbo_sigmas(steps)
    torch.testing.assert_close(sigmas, scheduler.sigmas, atol=2e-7, rtol=0)


@pytest.mark.parametrize(
    ("steps", "denoise", "finer"),
    [(8, 1.0, 8), (8, 0.5, 16), (5, 0.37, 13), (7, 0.6, 11), (8, 0.999, 8), (1, 0.3, 3)],
)
def test_denoise_keeps_the_end_of_a_finer_grid(steps: int, denoise: float, finer: int) -> None:
    """finer: steps / denoise, cut off: 13.51 is 13, 11.67 is 11, as the host counts."""
    sigmas = flow_sigmas(steps, 3.0, denoise).double()
    even = sigmas / (3 - 2 * sigmas)  # the shift undone
    wanted = torch.arange(steps, -1, -1, dtype=torch.float64) / finer
    torch.testing.assert_close(even, wanted, atol=1e-6, rtol=0)


def test_nothing_is_left_to_do_without_denoise() -> None:
    assert len(flow_sigmas(8, denoise=0.0)) == 0


@pytest.mark.parametrize("strength", [0.05, 0.37, 0.6, 0.61, 1.0])
@pytest.mark.parametrize("steps", [1, 8, 30])
def test_a_strength_is_where_the_grid_starts(steps: int, strength: float) -> None:
    """Diffusers and the host's denoise round it to a step: 0.6 and 0.61 would be the same of 8."""
    sigmas = strength_sigmas(steps, 3.0, strength)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert float(sigmas[0]) == pytest.approx(3 * strength / (1 + 2 * strength), rel=1e-6)
    even = sigmas.double() / (3 - 2 * sigmas.double())  # the shift undone
    torch.testing.assert_close(
        even, torch.linspace(strength, 0, steps + 1, dtype=torch.float64), atol=1e-6, rtol=0
    )
    if strength == 1:
        assert torch.equal(sigmas, flow_sigmas(steps, 3.0))


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.1])
def test_a_strength_out_of_range_is_named(strength: float) -> None:
    with pytest.raises(ValueError, match="strength"):
        strength_sigmas(8, 3.0, strength)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((0,), "steps"), ((8, 0.0), "shift"), ((8, 3.0, 1.2), "denoise"), ((8, 3.0, -0.1), "denoise")],
)
def test_values_out_of_range_are_named(arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        flow_sigmas(*arguments)


def test_guidance_truncates_on_the_clean_side() -> None:
    guidance = Guidance(scale=4.0, truncation=0.75)
    assert guidance.active(0.9) and guidance.active(0.25) and not guidance.active(0.24)
    assert not Guidance(scale=0.0).active(0.9)
    assert Guidance(scale=0.5).active(0.0)  # without truncation to the end


def test_normalisation_limits_each_sample() -> None:
    positive = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    negative = positive.clone()
    negative[0] = -positive[0]  # far apart: guidance would make this sample 9 times as long
    out = Guidance(scale=4.0, normalisation=1.0).combine(positive, negative)
    torch.testing.assert_close(out[0].norm(), positive[0].norm())
    torch.testing.assert_close(out[1], positive[1])
    torch.testing.assert_close(Guidance(scale=4.0).combine(positive, negative)[0], 9 * positive[0])


@pytest.mark.parametrize("limit", [0.5, 1.0, 1.5])
def test_normalisation_never_lengthens(limit: float) -> None:
    """Guided to 0.6, 1.2 and 3.4 times the length of the positive, each sample as a whole."""
    positive = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(2))
    negative = positive * torch.tensor([1.2, 0.9, -0.2]).view(3, 1, 1, 1)
    out = Guidance(scale=2.0, normalisation=limit).combine(positive, negative)
    lengths = torch.tensor([min(length, limit) for length in (0.6, 1.2, 3.4)])
    torch.testing.assert_close(out, positive * lengths.view(3, 1, 1, 1))
