"""After a run that breaks off for want of memory the next one is as if it had not been."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import comfy.model_management as management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from tests.core.random_models import random_s3dit
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.inside.sampling import SEED, from_file, prompts, sampled

STATE = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
POSITIVE, NEGATIVE = prompts(matrix.CAPTION, 21, 70)
STEPS = 3

accelerated = extension_module("nodes.host.running.accelerate").accelerated
Run = extension_module("nodes.host.running.conds").Run
RunMemo = extension_module("zimage_core.model.memo").RunMemo


def ours(scratch: Path) -> ModelPatcher:
    return from_file(scratch / "ours.safetensors", STATE)


def under_accelerate(scratch: Path) -> ModelPatcher:
    return accelerated(small_native.patcher(dict(STATE)))[0]


def with_a_lora(scratch: Path) -> ModelPatcher:
    weight = STATE["layers.1.feed_forward.w2.weight"]
    generator = torch.Generator().manual_seed(SEED)
    lora = {
        "diffusion_model.layers.1.feed_forward.w2.lora_up.weight": torch.randn(
            weight.shape[0], 2, generator=generator
        ),
        "diffusion_model.layers.1.feed_forward.w2.lora_down.weight": torch.randn(
            2, weight.shape[1], generator=generator
        ),
    }
    return comfy.sd.load_lora_for_models(ours(scratch), None, lora, 0.01, 0.0)[0]


def picture(patcher: ModelPatcher) -> Tensor:
    return sampled(patcher, POSITIVE, NEGATIVE, steps=STEPS, cfg=3.0)


def as_a_node(patcher: ModelPatcher) -> bool:
    """Run as the host runs a node; whether it broke off. The host then unloads every model."""
    try:
        picture(patcher)
    except management.OOM_EXCEPTION:
        management.unload_all_models()
        return True
    return False


def alive() -> tuple[int, list]:
    """How many tensors there are, and what runs keep."""
    gc.collect()
    found = [each for each in gc.get_objects() if issubclass(type(each), (Tensor, Run, RunMemo))]
    kept = [each for each in found if not issubclass(type(each), Tensor)]
    return len(found) - len(kept), kept


@pytest.mark.parametrize("stack", ["context_refiner", "noise_refiner", "layers"])
@pytest.mark.parametrize("make", [ours, under_accelerate, with_a_lora])
def test_the_next_run_is_as_ever(make: Callable[[Path], ModelPatcher], stack: str, scratch: Path) -> None:
    patcher = make(scratch)
    network = patcher.get_model_object("diffusion_model")
    before = picture(patcher)
    management.unload_all_models()
    tensors, kept = alive()
    assert not kept
    calls = []

    def full(module: nn.Module, args: tuple) -> None:
        calls.append(module)
        if len(calls) == (2 if stack == "context_refiner" else STEPS - 1):
            raise management.OOM_EXCEPTION("CUDA out of memory")

    hook = getattr(network, stack)[-1].feed_forward.w2.register_forward_pre_hook(full)
    assert as_a_node(patcher)
    hook.remove()
    calls.clear()
    assert alive() == (tensors, [])
    assert torch.equal(picture(patcher), before)
