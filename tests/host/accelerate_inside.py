"""Runs inside a ComfyUI's Python: ZImageAccelerate on MODELs as different loaders make them.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/accelerate_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from pathlib import Path

HOST = Path(sys.argv[1]).resolve()

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

from tests.core.random_models import random_s3dit, relative  # noqa: E402
from tests.host import matrix  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402

enter(HOST)
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent))
import small_native  # noqa: E402

SEED = int(os.environ.get("ZIMAGE_SEED", "1234"))
accelerate = extension_module("nodes.host.running.accelerate")
STATE = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
generator = torch.Generator().manual_seed(SEED)
CAPTION = [[torch.randn(1, 21, matrix.CAPTION, generator=generator), {}]]


class PackedOps(comfy.ops.manual_cast):
    """Weights kept as integers and unpacked at each use, as a GGUF loader's operations do."""

    calls = 0

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state, prefix, *args):
            weight = state.pop(f"{prefix}weight")
            self.scale = weight.abs().max() / 127
            packed = (weight / self.scale).round().to(torch.int8)
            self.weight = torch.nn.Parameter(packed, requires_grad=False)
            if self.bias is not None:
                self.bias = torch.nn.Parameter(state.pop(f"{prefix}bias"), requires_grad=False)

        def forward(self, x):
            PackedOps.calls += 1
            return F.linear(x, self.weight.to(x) * self.scale.to(x), self.bias)


def fp8(state: dict) -> dict:
    return {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in state.items()}


MODELS = {
    "fp32": lambda: small_native.patcher(dict(STATE)),
    "bf16": lambda: small_native.patcher({k: v.bfloat16() for k, v in STATE.items()}, None, torch.bfloat16),
    "fp8": lambda: small_native.patcher(fp8(STATE), None, torch.float8_e4m3fn),
    "packed operations": lambda: small_native.patcher(dict(STATE), PackedOps),
}


def sampled(patcher) -> torch.Tensor:
    latent = torch.zeros(1, 16, 8, 12)
    inputs = (2, 1.0, "euler", "simple", CAPTION, CAPTION, latent)
    noise = comfy.sample.prepare_noise(latent, SEED)
    return comfy.sample.sample(patcher, noise, *inputs, disable_pbar=True, seed=SEED)


def storages(module: torch.nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}


def on(name: str) -> dict:
    """One kind of MODEL: is it the same picture, on the same tensors, and whole again afterwards?"""
    native = MODELS[name]()
    embedded = []  # captions that were embedded: ours does it once a run, the host once a step
    native.model.diffusion_model.cap_embedder[1].register_forward_hook(lambda *_: embedded.append(1))
    plain = sampled(native)
    captions = [len(embedded)]
    theirs = type(native.model.diffusion_model).__name__
    fast, _ = accelerate.accelerated(native)
    network = fast.get_model_object("diffusion_model")
    shared = storages(network) <= storages(native.model.diffusion_model)
    calls = PackedOps.calls
    made = sampled(fast)
    captions.append(len(embedded) - captions[0])
    used = PackedOps.calls - calls
    fast.unpatch_model()
    return {
        "distance": relative(made, plain),
        "shared": shared,
        "captions": captions,
        "packed calls": used,
        "restored": type(native.model.diffusion_model).__name__ == theirs,
        "same again": relative(sampled(native), plain),
    }


def refusal() -> str:
    other = comfy.model_patcher.ModelPatcher(
        torch.nn.ModuleDict({"diffusion_model": torch.nn.Linear(2, 2)}), "cpu", "cpu"
    )
    try:
        accelerate.accelerated(other)
    except ValueError as error:
        return str(error)
    return ""


def follows_a_fresh_clone() -> bool | None:
    """Some hosts can clone a MODEL onto freshly loaded weights; our network must move there too."""
    if "force_deepcopy" not in inspect.signature(comfy.model_patcher.ModelPatcher.clone).parameters:
        return None
    native = MODELS["fp32"]()
    native.cached_patcher_init = (lambda disable_dynamic=False: MODELS["fp32"](), ())
    fast, _ = accelerate.accelerated(native)
    fresh = fast.clone(force_deepcopy=True)
    network = fresh.get_model_object("diffusion_model")
    return storages(network) <= storages(fresh.model.diffusion_model) and fresh.model is not native.model


def nothing_to_do() -> bool:
    """A second Accelerate hands on what the first made."""
    fast, _ = accelerate.accelerated(MODELS["fp32"]())
    return accelerate.accelerated(fast)[0] is fast


with torch.no_grad():
    answer = {
        "models": {name: on(name) for name in MODELS},
        "refusal": refusal(),
        "fresh clone": follows_a_fresh_clone(),
        "twice": nothing_to_do(),
    }
sys.stdout.write(json.dumps(answer) + "\n")
