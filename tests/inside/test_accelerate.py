"""ZImageAccelerate on MODELs of any loader: the same picture from the same tensors."""

from __future__ import annotations

import inspect
from pathlib import Path

import comfy.model_patcher
import comfy.ops
import comfy.utils
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from tests.core.random_models import random_s3dit, relative
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.inside.sampling import SEED, prompts, sampled

accelerated = extension_module("nodes.host.running.accelerate").accelerated
STATE = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
(CAPTION,) = prompts(matrix.CAPTION, 21)


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


def storages(module: torch.nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}


@pytest.mark.parametrize("kind", MODELS)
def test_same_picture_from_the_same_tensors(kind: str) -> None:
    native = MODELS[kind]()
    theirs = type(native.model.diffusion_model)
    embedded = []
    native.model.diffusion_model.cap_embedder[1].register_forward_hook(lambda *_: embedded.append(1))
    plain = sampled(native, CAPTION, CAPTION)
    assert len(embedded) == 2, "the host embeds its caption once a step"
    fast, _ = accelerated(native)
    network = fast.get_model_object("diffusion_model")
    assert storages(network) <= storages(native.model.diffusion_model), "the weights exist twice"
    embedded.clear()
    assert relative(sampled(fast, CAPTION, CAPTION), plain) <= 1e-5
    assert len(embedded) == 1, "ours embeds it once a run"
    fast.unpatch_model()
    assert type(native.model.diffusion_model) is theirs, "the given MODEL is not what it was"
    assert torch.equal(sampled(native, CAPTION, CAPTION), plain)


def test_the_loaders_own_operations_do_the_work() -> None:
    """As a GGUF loader needs it: only its layers know what their weights mean."""
    fast, _ = accelerated(MODELS["packed operations"]())
    before = PackedOps.calls
    sampled(fast, CAPTION, CAPTION)
    assert PackedOps.calls > before


def test_what_is_no_z_image_is_named() -> None:
    other = torch.nn.ModuleDict({"diffusion_model": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="Linear.* not Z-Image|not Z-Image.*Linear"):
        accelerated(comfy.model_patcher.ModelPatcher(other, "cpu", "cpu"))


def test_it_follows_a_fresh_clone() -> None:
    """Some hosts can clone a MODEL onto freshly loaded weights; our network must move there too."""
    if "force_deepcopy" not in inspect.signature(comfy.model_patcher.ModelPatcher.clone).parameters:
        return  # this host makes no such clones
    native = MODELS["fp32"]()
    native.cached_patcher_init = (lambda disable_dynamic=False: MODELS["fp32"](), ())
    fast, _ = accelerated(native)
    fresh = fast.clone(force_deepcopy=True)
    assert fresh.model is not native.model
    assert storages(fresh.get_model_object("diffusion_model")) <= storages(fresh.model.diffusion_model)


def test_a_second_one_hands_on_what_the_first_made() -> None:
    fast, _ = accelerated(MODELS["fp32"]())
    assert accelerated(fast)[0] is fast


NEW = [f"diffusion_model.{path}brand_new" for path in ("", "layers.1.attention.")]
OLD = ["diffusion_model.time_scale", "diffusion_model.layers.1.attention.n_rep"]
# Older hosts cannot put what was not there.
PATCHES = OLD + (NEW if hasattr(comfy.utils, "ATTR_UNSET") else [])


@pytest.mark.parametrize("before", [True, False], ids=["patch, then accelerate", "accelerate, then patch"])
@pytest.mark.parametrize("name", PATCHES)
def test_object_patches_of_other_nodes(name: str, before: bool) -> None:
    """They are there while the MODEL runs, and the given MODEL is whole again afterwards."""
    native = MODELS["fp32"]()
    was = {key: comfy.utils.get_attr(native.model, key) for key in OLD}
    patcher = native.clone() if before else accelerated(native)[0]
    patcher.add_object_patch(name, 5)
    patcher = accelerated(patcher)[0] if before else patcher
    patcher.patch_model()
    assert comfy.utils.get_attr(patcher.model, name) == 5
    patcher.unpatch_model()
    assert {key: comfy.utils.get_attr(native.model, key) for key in OLD} == was
    for key in NEW:
        module, attribute = key.rsplit(".", 1)
        assert not hasattr(comfy.utils.get_attr(native.model, module), attribute)
    native.patch_model()
    native.unpatch_model()


@pytest.mark.parametrize("loader", ["ours", "accelerated"])
def test_sizes_are_read_from_the_network_as_from_the_hosts(loader: str, scratch: Path) -> None:
    native = MODELS["fp32"]()
    theirs = native.model.diffusion_model
    if loader == "accelerated":
        network = accelerated(native)[0].get_model_object("diffusion_model")
    else:
        save_file(STATE, scratch / "small.safetensors")
        load = extension_module("nodes.host.loading.model").load_patcher
        network = load(scratch / "small.safetensors", "fp32").model.diffusion_model
    sizes = {key: value for key, value in vars(theirs).items() if isinstance(value, (int, float, list))}
    del sizes["axes_lens"]  # an upper limit that no code looks at
    assert {"in_channels", "patch_size", "dim"} <= sizes.keys()
    for key, value in sizes.items():
        found = getattr(network, key)
        assert (list(found) if isinstance(value, list) else found) == value, key
