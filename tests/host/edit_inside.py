"""Runs inside a ComfyUI's Python: FlowEdit under the host's sampling against the library's, and its calls.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/edit_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HOST, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:3])

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.core.random_models import TINY, random_s3dit, relative  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from zimage_core.sampling.flowedit import flow_edit  # noqa: E402
from zimage_core.sampling.schedule import strength_sigmas  # noqa: E402

enter(HOST)
import comfy.patcher_extension  # noqa: E402

SEED, BATCH, STEPS = int(os.environ.get("ZIMAGE_SEED", "1234")), 2, 3
generator = torch.Generator().manual_seed(SEED)
NETWORK = random_s3dit(TINY, SEED)
SIGMAS = strength_sigmas(STEPS, 3.0, 0.8)
X = torch.randn(BATCH, 16, 8, 12, generator=generator)


def caption(length: int) -> torch.Tensor:
    return torch.randn(1, length, TINY.cap_feat_dim, generator=generator)


SHORT, OTHER, LONG, NEGATIVE = (caption(length) for length in (12, 21, 70, 17))


def model():
    path = SCRATCH / "small.safetensors"
    save_file(NETWORK.state_dict(), path)
    return extension_module("nodes.host.loading.model").load_patcher(path, "fp32")


def in_the_host(source, target, cfgs=(1.0, 1.0), n_min=0) -> tuple[torch.Tensor, list[int]]:
    """The edited latent, and the batch of each call of the network."""
    flowedit, calls = extension_module("nodes.host.running.flowedit"), []

    def count(executor, x, *args, **kwargs):
        calls.append(len(x))
        return executor(x, *args, **kwargs)

    patcher = model().clone()
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "count", count)
    conds = [[[c, {"pooled_output": None}]] for c in (source, target, NEGATIVE)]
    guider = flowedit.FlowEditGuider(patcher, conds[0], conds[1], conds[2] if max(cfgs) > 1 else None)
    guider.set_cfgs(*cfgs)
    sampler = flowedit.FlowEditSampler(n_min, 1)
    sample = extension_module("nodes.host.running.sampling").sample
    made = sample(guider, sampler, {"samples": X}, SEED, SIGMAS)
    return made["samples"], calls


def by_the_library(source, target, cfgs=(1.0, 1.0), n_min=0) -> torch.Tensor:
    latent_format = model().get_model_object("latent_format")
    draws = torch.Generator().manual_seed(SEED)

    def velocity(z, sigma, features, cfg):
        t = torch.full((len(z),), sigma)
        positive, negative = (NETWORK(z, t, c.expand(len(z), -1, -1)) for c in (features, NEGATIVE))
        return negative + cfg * (positive - negative)

    def velocities(z_source, z_target, sigma):
        first = None if z_source is None else velocity(z_source, sigma, source, cfgs[0])
        return first, velocity(z_target, sigma, target, cfgs[1])

    x = latent_format.process_in(X)
    return latent_format.process_out(
        flow_edit(x, SIGMAS, velocities, lambda: torch.randn(X.shape, generator=draws), n_min=n_min)
    )


found = {}
CASES = {
    "captions of one bucket": (SHORT, OTHER),
    "captions of two buckets": (SHORT, LONG),
    "guided": (SHORT, OTHER, (1.5, 4.0)),
    "guided, target only": (SHORT, LONG, (1.0, 4.0)),
    "plain steps at the end": (SHORT, OTHER, (1.0, 1.0), 2),
}
for name, case in CASES.items():
    edited, calls = in_the_host(*case)
    expected = by_the_library(*case)
    found[name] = {
        "distance": relative(edited - X, expected - X),
        "change": relative(expected, X),
        "calls": calls,
    }
sys.stdout.write(json.dumps(found) + "\n")
