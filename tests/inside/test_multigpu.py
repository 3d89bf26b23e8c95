"""The host's own nodes for several GPUs on our MODEL: the sides of guidance on a device each.

A second device is a CPU of another number, which torch computes on as on the first. Older hosts have no such
nodes.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import comfy.model_management as management
import pytest
import torch
from torch import Tensor

from tests.core.lora_files import DIALECTS, write
from tests.core.random_models import random_s3dit
from tests.host import matrix
from tests.inside.sampling import SEED, from_file, prompts, sampled
from tests.inside.test_lora import with_lora

DEVICES = [torch.device("cpu"), torch.device("cpu", 1)]

if importlib.util.find_spec("comfy.multigpu"):
    multigpu = importlib.import_module("comfy.multigpu")

    @pytest.fixture
    def base(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setattr(management, "get_all_torch_devices", lambda exclude_current=False: DEVICES)
        monkeypatch.setattr(management, "set_torch_device", lambda device: None)
        state = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
        return from_file(scratch / "two devices.safetensors", state)

    def guided(patcher: Any) -> Tensor:
        width = matrix.SMALL_CONFIG.cap_feat_dim
        with torch.inference_mode():
            return sampled(patcher, *prompts(width, 12, 40), cfg=3.0, steps=3)

    def used_on(patcher: Any) -> list[Any]:
        """The MODELs of the devices that are asked for something."""
        return [patcher, *patcher.get_additional_models_with_key("multigpu")]

    @pytest.mark.parametrize("with_patches", [False, True], ids=["plain", "with a LoRA"])
    def test_two_devices_make_the_picture_of_one(base: Any, with_patches: bool) -> None:
        if with_patches:
            weights = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
            base = with_lora(base, write(weights, DIALECTS["ai-toolkit"], SEED, size=0.1))
        wanted = guided(base)
        both = multigpu.create_multigpu_deepclones(base, 2)
        first, second = used_on(both)
        assert second.model.diffusion_model is not first.model.diffusion_model
        assert {first.load_device, second.load_device} == set(DEVICES)
        calls = [0, 0]
        for number, each in enumerate((first, second)):

            def count(module: Any, args: tuple, number: int = number) -> None:
                calls[number] += 1

            each.model.diffusion_model.register_forward_pre_hook(count)
        found = guided(both)
        assert calls == [3, 3]
        assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(guided(base), wanted)
