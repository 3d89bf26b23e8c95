"""FlowEdit inside the host equals the library's, in as few calls of the network as its captions allow."""

from __future__ import annotations

import comfy.patcher_extension
import pytest
import torch
from torch import Tensor

from tests.core.random_models import TINY, random_s3dit, relative
from tests.host.inside import extension_module
from tests.inside.sampling import SEED, SIZE, from_file, prompts
from zimage_core.sampling.flowedit import flow_edit
from zimage_core.sampling.schedule import strength_sigmas

flowedit = extension_module("nodes.host.running.flowedit")
sample = extension_module("nodes.host.running.sampling").sample
BATCH, STEPS = 2, 3
NETWORK = random_s3dit(TINY, SEED)
SIGMAS = strength_sigmas(STEPS, 3.0, 0.8)
X = torch.randn(BATCH, 16, *SIZE, generator=torch.Generator().manual_seed(SEED))
SHORT, OTHER, LONG, NEGATIVE = prompts(TINY.cap_feat_dim, 12, 21, 70, 17)
CASES = {  # source and target, their guidance, plain steps at the end; the batch of each call of the network
    "captions of one bucket": ((SHORT, OTHER), [4, 4, 4]),
    "captions of two buckets": ((SHORT, LONG), [2] * 6),
    "guided": ((SHORT, OTHER, (1.5, 4.0)), [8, 8, 8]),
    "guided, target only": ((SHORT, LONG, (1.0, 4.0)), [2] * 9),
    "plain steps at the end": ((SHORT, OTHER, (1.0, 1.0), 2), [4, 2, 2]),
}


def in_the_host(patcher, source, target, cfgs=(1.0, 1.0), n_min=0) -> tuple[Tensor, list[int]]:
    """The edited latent, and the batch of each call of the network."""
    calls = []

    def count(executor, x, *args, **kwargs):
        calls.append(len(x))
        return executor(x, *args, **kwargs)

    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "count", count)
    guider = flowedit.FlowEditGuider(patcher, source, target, NEGATIVE if max(cfgs) > 1 else None)
    guider.set_cfgs(*cfgs)
    made = sample(guider, flowedit.FlowEditSampler(n_min, 1), {"samples": X}, SEED, SIGMAS)
    return made["samples"], calls


def by_the_library(latent_format, source, target, cfgs=(1.0, 1.0), n_min=0) -> Tensor:
    draws = torch.Generator().manual_seed(SEED)

    def velocity(z: Tensor, sigma: float, caption: list, cfg: float) -> Tensor:
        t = torch.full((len(z),), sigma)
        positive, negative = (NETWORK(z, t, c[0][0].expand(len(z), -1, -1)) for c in (caption, NEGATIVE))
        return negative + cfg * (positive - negative)

    def velocities(z_source: Tensor | None, z_target: Tensor, sigma: float) -> tuple[Tensor | None, Tensor]:
        first = None if z_source is None else velocity(z_source, sigma, source, cfgs[0])
        return first, velocity(z_target, sigma, target, cfgs[1])

    x = latent_format.process_in(X)
    return latent_format.process_out(
        flow_edit(x, SIGMAS, velocities, lambda: torch.randn(X.shape, generator=draws), n_min=n_min)
    )


@pytest.mark.parametrize("case", CASES)
def test_equals_the_library_in_few_calls(scratch, case: str) -> None:
    """Source and target share a call where their captions are of one bucket."""
    given, expected_calls = CASES[case]
    patcher = from_file(scratch / "small.safetensors", NETWORK.state_dict())
    expected = by_the_library(patcher.get_model_object("latent_format"), *given)
    assert relative(expected, X) > 0.05, "it changes nothing: the comparison proves nothing"
    edited, calls = in_the_host(patcher, *given)
    assert relative(edited - X, expected - X) < 1e-4
    assert calls == expected_calls
