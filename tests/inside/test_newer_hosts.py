"""What a newer ComfyUI offers is used where it is there; stand-ins with its signatures show it elsewhere."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.model_base
import comfy.ops
import comfy.utils
import pytest
import torch
from comfy.ldm.modules import attention as host_attention
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import random_s3dit, randomise, relative
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.inside import test_language_model as writing
from tests.inside.sampling import SEED, prompts, sampled
from zimage_core import Qwen3TextEncoder

STATE = random_s3dit(matrix.SMALL_CONFIG, SEED).state_dict()
(PROMPT,) = prompts(matrix.CAPTION, 21)
LAYER = "diffusion_model.layers.1.attention.comfy_attention"

accelerate = extension_module("nodes.host.running.accelerate")
has_omni_keys = extension_module("nodes.host.running.edit").has_omni_keys


class ComfyAttention(torch.nn.Module):
    """In each attention of a newer host's networks: which one a file prefers there, as JSON in bytes."""

    calls: list[str] = []  # of preferred attentions, by their names

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        self.name = name

    def _load_from_state_dict(self, state, prefix, *args) -> None:
        stored = state.pop(f"{prefix}config", None)
        if stored is not None:
            self.name = json.loads(bytes(stored.tolist()))["attention"]
        super()._load_from_state_dict(state, prefix, *args)

    @property
    def function(self) -> Callable | None:
        return self.mean if self.name else None

    def mean(self, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
        """Every token sees all alike, to be seen in the picture."""
        self.calls.append(self.name)
        return host_attention.attention_pytorch(q, 0 * k, v, *args, **kwargs)


@pytest.fixture(autouse=True)
def newer(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the preferred attentions that were called."""
    plain = host_attention.optimized_attention_masked

    def attend(*args, preferred_attention: ComfyAttention | None = None, **kwargs) -> Tensor:
        function = None if preferred_attention is None else preferred_attention.function
        return (function or plain)(*args, **kwargs)

    monkeypatch.setattr(host_attention, "ComfyAttention", ComfyAttention, raising=False)
    monkeypatch.setattr(host_attention, "optimized_attention_masked", attend)
    monkeypatch.setattr(ComfyAttention, "calls", [])
    yield ComfyAttention.calls


def native(name: str | None = None) -> ModelPatcher:
    """The host's own Z-Image as such a host makes it. name: what a file prefers in one of its layers."""
    patcher = small_native.patcher(dict(STATE))
    network = patcher.model.diffusion_model
    for module in [m for m in network.modules() if type(m).__name__ == "JointAttention"]:
        module.comfy_attention = ComfyAttention()
    network.layers[1].attention.comfy_attention.name = name
    return patcher


def picture(patcher: ModelPatcher) -> Tensor:
    return sampled(patcher, PROMPT, PROMPT, steps=1)


def test_a_files_preference_is_read_and_used(newer, scratch: Path, caplog) -> None:
    stored = torch.tensor(list(json.dumps({"attention": "sparse"}).encode()), dtype=torch.uint8)
    load = extension_module("nodes.host.loading.model").load_patcher
    for name, more in (("plain", {}), ("preferring", {"layers.1.attention.comfy_attention.config": stored})):
        save_file({**STATE, **more}, scratch / f"{name}.safetensors")
    plain = picture(load(scratch / "plain.safetensors", "fp32"))
    assert newer == []
    changed = picture(load(scratch / "preferring.safetensors", "fp32"))
    assert newer == ["sparse"] and relative(changed, plain) > 1e-3
    assert "unexpected" not in caplog.text


def test_under_accelerate_the_hosts_own_preference_counts(newer) -> None:
    picture(accelerate.accelerated(native("sparse"))[0])
    assert newer == ["sparse"]


@pytest.mark.parametrize("before", [True, False], ids=["LoRA, then accelerate", "accelerate, then LoRA"])
def test_a_loras_preference_comes_and_goes(newer, before: bool) -> None:
    """It is an object patch; afterwards the MODEL prefers what its file did."""
    model = native("sparse")
    own = comfy.utils.get_attr(model.model, LAYER)
    patcher = model.clone() if before else accelerate.accelerated(model)[0]
    patcher.add_object_patch(LAYER, ComfyAttention("of the LoRA"))
    patcher = accelerate.accelerated(patcher)[0] if before else patcher
    picture(patcher)
    assert newer == ["of the LoRA"]
    patcher.unpatch_model()
    assert comfy.utils.get_attr(model.model, LAYER) is own
    newer.clear()
    picture(accelerate.accelerated(model)[0])
    assert newer == ["sparse"]


def test_a_loras_preference_on_our_own_model(newer, scratch: Path) -> None:
    save_file(STATE, scratch / "plain.safetensors")
    patcher = extension_module("nodes.host.loading.model").load_patcher(scratch / "plain.safetensors", "fp32")
    changed = patcher.clone()
    changed.add_object_patch(LAYER, ComfyAttention("of the LoRA"))
    picture(changed)
    assert newer == ["of the LoRA"]
    picture(patcher)
    assert newer == ["of the LoRA"]


@pytest.mark.parametrize("image_model", ["ming_image", "zimage_pixel"])
def test_relatives_that_the_host_takes_for_lumina(image_model: str) -> None:
    class Relative(comfy.model_base.Lumina2):
        pass

    patcher = native()
    patcher.model.__class__ = Relative
    patcher.model.model_config.unet_config["image_model"] = image_model
    for ask in (accelerate.accelerated, has_omni_keys):
        with pytest.raises(ValueError, match="Relative.*not Z-Image"):
            ask(patcher)


def test_z_image_of_every_loader_can_be_edited(scratch: Path) -> None:
    save_file(STATE, scratch / "plain.safetensors")
    ours = extension_module("nodes.host.loading.model").load_patcher(scratch / "plain.safetensors", "fp32")
    for patcher in (ours, native(), accelerate.accelerated(native())[0]):
        assert has_omni_keys(patcher) is False


def test_lumina_2_itself_cannot() -> None:
    patcher = native()
    patcher.model.model_config.unet_config["z_image_modulation"] = False
    with pytest.raises(ValueError, match="not Z-Image"):
        has_omni_keys(patcher)


def test_writing_multiplies_quantised_and_fetches_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    @contextlib.contextmanager
    def use_quantized_matmul(model: torch.nn.Module, device: torch.device) -> Iterator[None]:
        seen.append((model, device))
        yield
        seen.append("left")

    monkeypatch.setattr(comfy.ops, "use_quantized_matmul", use_quantized_matmul, raising=False)
    weights = randomise(Qwen3TextEncoder(writing.CONFIG, language_model=True), SEED).state_dict()
    clip = writing.clip_of(weights, torch.float32)
    writer = writing.language_model.LanguageModel(clip)
    layers, ahead = writer.transformer.model, []
    before = getattr(layers, "prefetch_dynamic_vbars", None)
    layers.norm.register_forward_hook(lambda *_: ahead.append(layers.prefetch_dynamic_vbars))
    writer.write(writing.MESSAGES, writing.greedy, 2)
    assert seen == [(clip.cond_stage_model, clip.patcher.load_device), "left"]
    assert ahead and all(ahead) and bool(layers.prefetch_dynamic_vbars) == bool(before)


def test_results_on_the_page_outlive_it_where_the_host_can() -> None:
    if "has_intermediate_output" in inspect.signature(io.Schema).parameters:
        for module, name in (("edit", "ZImageEdit"), ("enhancer", "ZImagePromptEnhancer")):
            node = getattr(extension_module(f"nodes.{module}"), name)
            assert node.define_schema().has_intermediate_output
