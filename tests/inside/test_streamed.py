"""Where ComfyUI leaves a part of the layers in memory and brings each when it runs, nothing changes."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as management
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from tests.core.formats import WIDE, block_matrices, by_kitchen, marker
from tests.core.random_models import random_s3dit, relative
from tests.host.inside import extension_module
from tests.inside.sampling import SEED, prompts

STATE = random_s3dit(WIDE, SEED).state_dict()
LAYERS = block_matrices(STATE)
((CAPTION, _),) = prompts(WIDE.cap_feat_dim, 40)[0]
SAME = 1e-6  # relative L2 of what is computed
EFFECT = 0.1  # a LoRA that changed less would prove nothing
# How far a LoRA's velocity is at most from that of the weights merged in float64: the host stores the merged
# weights in the format again. What is changed as it runs, newer hosts do not round.
MERGED = {"bf16": 2.2e-3, "float8_e4m3fn": 0.045, "int8_tensorwise": 0.022}

load_patcher = extension_module("nodes.host.loading.model").load_patcher


def written(scratch: Path, name: str) -> tuple[Path, dict[str, Tensor]]:
    """A file whose blocks are stored so, and the weights that it stands for."""
    path = scratch / f"{name}.safetensors"
    if name == "bf16":
        tensors = truth = {k: v.bfloat16() for k, v in STATE.items()}
    else:
        tensors, marks, truth = by_kitchen(STATE, name)
        tensors = tensors | {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return path, {k: v.double() for k, v in truth.items()}


def change() -> dict[str, tuple[Tensor, Tensor]]:
    """Of every matrix in the blocks, half as large as the matrix: (up, down)."""
    generator, made = torch.Generator().manual_seed(SEED), {}
    for layer in LAYERS:
        weight = STATE[f"{layer}.weight"]
        up = torch.randn(weight.shape[0], 4, generator=generator)
        down = torch.randn(4, weight.shape[1], generator=generator)
        made[layer] = up, down * weight.norm() / (up @ down).norm() / 2
    return made


def with_lora(patcher: ModelPatcher) -> ModelPatcher:
    lora = {}
    for layer, (up, down) in change().items():
        lora[f"diffusion_model.{layer}.lora_up.weight"] = up
        lora[f"diffusion_model.{layer}.lora_down.weight"] = down
    return comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)[0]


def velocity(patcher: ModelPatcher) -> Tensor:
    """Of the network as it is loaded now; the host's sampler would load it its own way."""
    generator = torch.Generator().manual_seed(SEED)
    latent = torch.randn(1, 16, 8, 12, generator=generator)
    dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
    out = patcher.model.diffusion_model(latent.to(dtype), torch.tensor([0.7]), CAPTION.to(dtype))
    return out.float()


def resident(patcher: ModelPatcher) -> Tensor:
    management.load_models_gpu([patcher], force_full_load=True)
    assert not patcher.model.model_lowvram
    out = velocity(patcher)
    management.unload_all_models()
    return out


def streamed(patcher: ModelPatcher, share: float) -> Tensor:
    """With no more than this share of the weights loaded."""
    patcher.load(torch.device("cpu"), lowvram_model_memory=max(1, share * patcher.model_size()))
    assert patcher.model.model_lowvram
    try:
        return velocity(patcher)
    finally:
        patcher.detach()


def load(path: Path) -> ModelPatcher:
    """On a CPU bf16 files become float32 unless they are told."""
    return load_patcher(path, "bf16" if path.stem == "bf16" else "auto")


def outputs(patcher: ModelPatcher) -> tuple[Tensor, Tensor, Tensor]:
    """All of the weights loaded, a part of them and none."""
    return resident(patcher), streamed(patcher, 0.8), streamed(patcher, 0.0)


@pytest.mark.parametrize("name", MERGED)
def test_streamed_is_exactly_resident(name: str, scratch: Path) -> None:
    path, _ = written(scratch, name)
    whole, part, none = outputs(load(path))
    assert torch.equal(part, whole) and torch.equal(none, whole)


@pytest.mark.parametrize("name", MERGED)
def test_with_a_lora(name: str, scratch: Path) -> None:
    """A layer that is not loaded is changed as it runs, which is the more exact of the two."""
    path, truth = written(scratch, name)
    plain = resident(load(path))
    for layer, (up, down) in change().items():
        truth[f"{layer}.weight"] += up.double() @ down.double()
    merged = scratch / f"{name} merged.safetensors"
    save_file({k: v.float() for k, v in truth.items()}, merged)
    right = resident(load_patcher(merged, "fp32"))
    assert relative(right, plain.to(right)) > EFFECT
    patcher = with_lora(load(path))
    whole, part, none = (relative(out, right) for out in outputs(patcher))
    assert whole <= MERGED[name]
    assert none <= whole + SAME and part <= MERGED[name]
