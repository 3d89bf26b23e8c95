"""Layers that stay packed in memory: what the host counts, streams, changes, copies and saves of them."""

from __future__ import annotations

import inspect
from pathlib import Path

import comfy.hooks
import comfy.model_management as management
import comfy.sd
import gguf
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_merging import ModelMergeSimple
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.core.formats import WIDE, block_matrices, by_kitchen, marker, write_gguf
from tests.core.random_models import random_s3dit, relative
from tests.host.inside import extension_module
from tests.inside.sampling import SEED, prompts, sampled
from zimage_core.model.sequence import Span

SAME = 1e-6  # relative L2 of what is computed in float32
BF16 = 2.2e-3  # weights rounded once
EFFECT = 0.1  # a LoRA that changed less would prove nothing
MARKERS = 64  # bytes at most, of what says how a layer is stored
STATE = random_s3dit(WIDE, SEED).state_dict()
OTHER = random_s3dit(WIDE, SEED + 1).state_dict()
LAYERS = block_matrices(STATE)
PLAIN = sum(value.numel() for key, value in STATE.items() if key.removesuffix(".weight") not in LAYERS)
CAPTIONS = prompts(WIDE.cap_feat_dim, 40, 25)
PREFIX = "diffusion_model."

packed = extension_module("nodes.host.running.packed")
merged_weights = extension_module("nodes.host.running.merged").merged_weights
load_patcher = extension_module("nodes.host.loading.model").load_patcher
read_transformer = extension_module("zimage_core.weights").read_transformer


def from_gguf(folder: Path, kind: str, state: dict = STATE, name: str = "file") -> tuple[ModelPatcher, dict]:
    """(a MODEL of a file in a type of ggml's blocks, the weights that it stands for)."""
    path = folder / f"{name}.gguf"
    truth = write_gguf(path, state, gguf.GGMLQuantizationType[kind], "lumina2", SEED)
    return load_patcher(path), {key: value.float() for key, value in truth.items()}


def plain(folder: Path, state: dict[str, Tensor]) -> ModelPatcher:
    path = folder / "plain.safetensors"
    save_file({key: value.float().contiguous() for key, value in state.items()}, path)
    return load_patcher(path, "fp32")


def lora(state: dict[str, Tensor], seed: int = SEED) -> dict[str, Tensor]:
    """A change of every matrix in the blocks, half as large as the matrix."""
    generator, out = torch.Generator().manual_seed(seed), {}
    for layer in LAYERS:
        rows, columns = state[f"{layer}.weight"].shape
        down, up = (torch.randn(4, columns, generator=generator), torch.randn(rows, 4, generator=generator))
        size = state[f"{layer}.weight"].norm() / (up @ down).norm() / 2
        out[f"{PREFIX}{layer}.lora_down.weight"] = down * size
        out[f"{PREFIX}{layer}.lora_up.weight"] = up
    return out


def by_hand(state: dict[str, Tensor], strength: float, change: dict[str, Tensor]) -> dict[str, Tensor]:
    """Merged in float64."""
    out = dict(state)
    for layer in LAYERS:
        up, down = (change[f"{PREFIX}{layer}.lora_{end}.weight"].double() for end in ("up", "down"))
        out[f"{layer}.weight"] = state[f"{layer}.weight"].double() + strength * up @ down
    return out


def with_lora(patcher: ModelPatcher, strength: float, change: dict[str, Tensor]) -> ModelPatcher:
    return comfy.sd.load_lora_for_models(patcher, None, change, strength, 0.0)[0]


def picture(patcher: ModelPatcher) -> Tensor:
    return sampled(patcher, *CAPTIONS, steps=1)


def velocity(patcher: ModelPatcher) -> Tensor:
    """Of the network as it is loaded now, without the host's sampler, which would load it its own way."""
    generator = torch.Generator().manual_seed(SEED)
    latent = torch.randn(1, 16, 8, 12, generator=generator)
    return patcher.model.diffusion_model(latent, torch.tensor([0.7]), CAPTIONS[0][0][0])


def streamed(patcher: ModelPatcher, resident: int) -> Tensor:
    """The velocity where no more than so many bytes of layers are loaded."""
    patcher.load(torch.device("cpu"), lowvram_model_memory=resident)
    assert patcher.model.model_lowvram
    try:
        return velocity(patcher)
    finally:
        patcher.detach()


@pytest.fixture(scope="module", params=["Q4_0", "Q6_K"])
def model(request, scratch) -> tuple[ModelPatcher, dict[str, Tensor]]:
    return from_gguf(scratch, request.param)


def test_the_host_counts_what_is_packed(model, scratch) -> None:
    patcher, _ = model
    network = patcher.model.diffusion_model
    checkpoint = read_transformer(patcher.cached_patcher_init[1][0])
    stored = sum(checkpoint.bytes_in(layer) for layer in LAYERS)
    counted = management.module_size(network) - patcher.model_dtype().itemsize * PLAIN
    assert stored <= counted <= stored + MARKERS * len(LAYERS)
    assert patcher.model_size() - management.module_size(network) < 5000  # the table of sigmas
    assert stored < 0.42 * sum(2 * STATE[f"{layer}.weight"].numel() for layer in LAYERS)
    assert len(packed.packed_layers(patcher.model)) == len(LAYERS)


COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class Copied(TorchDispatchMode):
    """Bytes that go from memory to the device "meta", in the place of a card."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in COPIES and out.is_meta:
            self.bytes += sum(arg.nbytes for arg in args if isinstance(arg, Tensor) and not arg.is_meta)
        return out


def test_only_what_is_packed_goes_to_the_device(model) -> None:
    layer = model[0].model.diffusion_model.get_submodule(LAYERS[0])
    with Copied() as copied:
        out = layer(torch.empty(2, layer.in_features, dtype=torch.bfloat16, device="meta"))
    assert out.is_meta and out.shape == (2, layer.out_features)
    assert copied.bytes == layer.weight.nbytes


def test_loras_resident_and_streamed_equal_merging_by_hand(model, tmp_path) -> None:
    """Two of them; on the way back the model is what it was."""
    base, truth = model
    first, second = lora(truth), lora(truth, SEED + 1)
    before = picture(base)
    changed = with_lora(with_lora(base, 0.7, first), -0.4, second)
    meant = plain(tmp_path, by_hand(by_hand(truth, 0.7, first), -0.4, second))
    assert relative(picture(changed), picture(meant)) <= SAME
    assert relative(picture(meant), before) > EFFECT
    right = velocity(meant)
    assert relative(velocity(changed), right) <= SAME
    half = changed.model_size() // 2
    for resident in (1, half):
        assert relative(streamed(changed, resident), right) <= SAME
    changed.load(torch.device("cpu"), full_load=True)
    changed.partially_unload(torch.device("cpu"), half)
    assert relative(velocity(changed), right) <= SAME
    changed.detach()
    assert torch.equal(picture(base), before)


def test_a_lora_in_bfloat16(model) -> None:
    """As layers run on a card: the matrix and the change are rounded once each."""
    base, truth = model
    change = lora(truth)
    changed = with_lora(base, 1.0, change)
    management.load_models_gpu([changed])
    layer = changed.model.diffusion_model.get_submodule(LAYERS[0])
    made = layer.changed(layer.matrix(layer.weight, torch.bfloat16))
    meant = by_hand(truth, 1.0, change)[f"{LAYERS[0]}.weight"]
    assert made.dtype == torch.bfloat16
    assert relative(made, meant) <= 1.2 * BF16


def test_loras_of_conditionings(model, tmp_path) -> None:
    """On one prompt of two and by a strength of its own, step after step."""
    base, truth = model
    change = lora(truth)
    hooks = comfy.hooks.create_hook_lora(change, 0.8, 0.0)
    hooked = comfy.hooks.set_hooks_for_conditioning(CAPTIONS[0], hooks)
    settings = {"steps": 2, "cfg": 3.0}

    def made(patcher: ModelPatcher) -> Tensor:
        first = sampled(comfy_clone(patcher), hooked, CAPTIONS[1], **settings)
        return torch.stack([first, sampled(patcher, *CAPTIONS, **settings)])

    def comfy_clone(patcher: ModelPatcher) -> ModelPatcher:
        clone = patcher.clone()
        hooks.hooks[0].need_weight_init = True
        clone.register_all_hook_patches(
            hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
        )
        return clone

    found, meant = made(base), made(plain(tmp_path, truth))
    assert relative(meant[0], meant[1]) > EFFECT
    assert relative(found[0], meant[0]) <= SAME and relative(found[1], meant[1]) <= SAME


def test_a_model_as_a_lora_of_conditionings_is_refused(model) -> None:
    """The host subtracts what is stored from it, which is no matrix here."""
    hooks = comfy.hooks.create_hook_model_as_lora({PREFIX + key: v for key, v in OTHER.items()}, None, 0.6, 0)
    hooked = comfy.hooks.set_hooks_for_conditioning(CAPTIONS[0], hooks)
    right = picture(model[0])
    with pytest.raises(ValueError, match="a model cannot be a hook LoRA on weights that stay packed"):
        sampled(model[0].clone(), hooked, CAPTIONS[1], cfg=3.0)
    assert torch.equal(picture(model[0]), right)


def test_merged_with_another_model(model, scratch, tmp_path) -> None:
    base, truth = model
    other, theirs = from_gguf(scratch, "Q8_0", OTHER, "other")
    merged = ModelMergeSimple().merge(base, other, 0.3)[0]
    meant = {key: 0.3 * value + 0.7 * theirs[key] for key, value in truth.items()}
    meant |= {key: truth[key] for key in truth if key.endswith("pad_token")}  # the host never merges these
    assert relative(picture(merged), picture(plain(tmp_path, meant))) <= SAME


def test_saved_packed_and_with_a_lora(model, tmp_path) -> None:
    base, truth = model
    for patcher, name, bound in ((base, "as it is", 0), (with_lora(base, 0.5, lora(truth)), "changed", BF16)):
        path = tmp_path / f"{name}.safetensors"
        comfy.sd.save_checkpoint(str(path), patcher, metadata={})
        assert relative(picture(load_patcher(path)), picture(patcher)) <= bound
        stored = load_file(path)
        kept = [stored[f"model.{PREFIX}{layer}.weight"].dtype == torch.uint8 for layer in LAYERS]
        assert all(kept) if bound == 0 else not any(kept)
        assert not [key for key in stored if key.endswith("comfy_quant")] or bound == 0


def test_saved_while_streamed(model, tmp_path) -> None:
    """Newer hosts save what is not loaded then; older ones load it before."""
    base, truth = model
    patcher = with_lora(base, 0.5, lora(truth))
    right = picture(patcher)
    patcher.load(torch.device("cpu"), lowvram_model_memory=1)
    holder = patcher if hasattr(patcher, "state_dict_for_saving") else patcher.model
    save_file(holder.state_dict_for_saving(), tmp_path / "file.safetensors")
    assert relative(picture(load_patcher(tmp_path / "file.safetensors")), right) <= BF16


def test_merged_for_a_file_of_another_format(model) -> None:
    base, truth = model
    change = lora(truth)
    patcher = with_lora(base, 0.5, change)
    management.load_models_gpu([patcher])
    found, meant = merged_weights(patcher), by_hand(truth, 0.5, change)
    assert found.types.keys() == meant.keys()
    for key, value in meant.items():
        assert relative(found.value(key, torch.float32), value) <= SAME, key


def test_on_weights_of_its_own(model) -> None:
    """A deep clone reads the file again; its LoRAs are its own."""
    base, truth = model
    load, settings = base.cached_patcher_init
    options = {"force_deepcopy": True} if "force_deepcopy" in inspect.signature(base.clone).parameters else {}
    change = lora(truth)
    changed = with_lora(base, 0.5, change)
    copied = changed.clone(**options) if options else with_lora(load(*settings), 0.5, change)
    assert copied.model is not base.model
    assert torch.equal(picture(copied), picture(changed))
    assert relative(picture(copied), picture(base)) > EFFECT


@pytest.mark.parametrize("changes", [False, True])
def test_compiled_as_one_graph(model, changes: bool) -> None:
    """fullgraph raises where the code of a block would break the graph."""
    patcher = with_lora(model[0], 0.5, lora(model[1])) if changes else model[0]
    management.load_models_gpu([patcher])
    block = patcher.model.diffusion_model.layers[0]
    tokens = torch.randn(1, 64, WIDE.dim)
    freqs = torch.eye(2).expand(1, 64, 1, 64, 2, 2).contiguous()
    modulation = tuple(torch.ones(1, 1, WIDE.dim) for _ in range(4))
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    out = compiled(tokens, Span(freqs, options={"block_index": 0}), modulation)
    assert relative(out, block(tokens, Span(freqs), modulation)) < SAME


def test_scales_of_packed_layers_are_counted_and_streamed_with_them(tmp_path) -> None:
    """Formats with scales, on a host that does not run them, or here with our layers in its place."""
    tensors, marks, truth = by_kitchen(STATE, "nvfp4")
    path = tmp_path / "file.safetensors"
    save_file(tensors | {f"{layer}.comfy_quant": marker(spec) for layer, spec in marks.items()}, path)
    patcher, right = load_patcher(path), plain(tmp_path, truth)
    stored = sum(read_transformer(path).bytes_in(layer) for layer in LAYERS)
    assert management.module_size(patcher.model.diffusion_model) <= stored + 4 * PLAIN + MARKERS * len(LAYERS)
    management.load_models_gpu([right])
    assert relative(streamed(patcher, 1), velocity(right)) <= 0.1
