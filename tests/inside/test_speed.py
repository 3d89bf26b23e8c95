"""ZImageSpeed's choices: what each does to a run, and what it says where the machine cannot."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import comfy.hooks
import comfy.model_management as management
import comfy.quant_ops
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from node_helpers import conditioning_set_values
from torch import Tensor
from torch._dynamo.utils import counters

from tests.core.random_models import random_s3dit, relative
from tests.core.recorder import Recorder, capture
from tests.host.inside import extension_module
from tests.inside import test_packed
from tests.inside.sampling import SEED, from_file, noise_of, prompts, sampled
from zimage_core import S3DiTConfig

CONFIG = S3DiTConfig(dim=256, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=64)
POSITIVE, NEGATIVE = prompts(CONFIG.cap_feat_dim, 21, 9)
CARD = torch.device("cuda", 0)

run_notes = extension_module("nodes.host.page.run_notes")
speed = extension_module("nodes.host.running.speed")
graphs = extension_module("nodes.host.running.graphs")
eight_bit = extension_module("nodes.host.running.eight_bit")
core = extension_module("zimage_core.acceleration.graphs")
HOSTS_KINDS = [kind for kind, name in eight_bit.FORMATS.items() if name in comfy.quant_ops.QUANT_ALGOS]


@pytest.fixture
def model(scratch) -> ModelPatcher:
    return from_file(scratch / "speed.safetensors", random_s3dit(CONFIG, SEED).state_dict())


def picture(patcher: ModelPatcher, **more: object) -> Tensor:
    return sampled(patcher, POSITIVE, NEGATIVE, **{"steps": 4, "cfg": 3.0, **more})


def recorded(model: ModelPatcher) -> tuple[ModelPatcher, object]:
    """With graphs as a card makes them."""
    clone, kept = model.clone(), core.Graphs(capture)
    graphs.with_graphs(clone, kept)
    return clone, kept


def test_a_compiler_that_fails_in_the_run_leaves_the_same_bits(
    model: ModelPatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is there but finds no headers: nothing before the run can tell."""

    def without_headers(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
        raise RuntimeError("the compiler ended with 1\nx.cpp:1: error: no Python.h")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=without_headers))
    monkeypatch.setattr(speed, "why_not_compiled", lambda: "")
    torch._dynamo.reset()
    with run_notes.collected() as found:
        made = picture(speed.sped_up(model, "compiled")[0])
    torch._dynamo.reset()
    assert torch.equal(made, picture(model))
    assert len(found.notes) == 1 and "it failed: x.cpp:1: error: no Python.h." in found.notes[0]


@pytest.mark.parametrize("mode", ["auto", "exact", "8-bit"])
def test_a_machine_without_a_card_gives_the_same_to_the_bit(model: ModelPatcher, mode: str) -> None:
    faster, lines = speed.sped_up(model, mode)
    assert torch.equal(picture(faster), picture(model))
    assert any("CUDA graphs: off" in line for line in lines), lines
    if mode == "8-bit":
        assert "8 bits: off" in lines[0]


def test_graphs_give_the_same_bits_run_after_run(
    model: ModelPatcher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fast, _ = recorded(model)
    for noise in (noise_of(), noise_of((10, 6)), noise_of(seed=3)):
        assert torch.equal(picture(fast, noise=noise), picture(model, noise=noise))
    assert caplog.text.count("forwards by CUDA graphs") == 3  # whatever was unloaded between them
    assert "3 of 4 forwards" in caplog.text


def test_a_lora_and_its_removal_are_seen(model: ModelPatcher) -> None:
    """The host puts the change into the weights and takes it out again."""
    fast, _ = recorded(model)
    before = picture(fast)
    key = "diffusion_model.layers.1.feed_forward.w2.weight"
    change = torch.randn(CONFIG.dim, CONFIG.ffn_dim, generator=torch.Generator().manual_seed(1)) / 30
    changed, plain = fast.clone(), model.clone()
    for patcher in (changed, plain):
        patcher.add_patches({key: (change,)})
    assert torch.equal(picture(changed), picture(plain))
    assert not torch.equal(picture(changed), before)
    assert torch.equal(picture(fast), before)


def patched(patcher: ModelPatcher, what: str) -> None:
    """As other nodes change a MODEL."""
    if what == "attention override":
        patcher.model_options["transformer_options"]["optimized_attention_override"] = (
            lambda function, *args, **kwargs: 0.5 * function(*args, **kwargs)
        )
    elif what == "output patch":
        patcher.set_model_attn1_output_patch(lambda out, extra: 0.5 * out)
    elif what == "double block":
        patcher.set_model_patch(lambda args: {"img": 0.5 * args["img"]}, "double_block")
    elif what == "replacement":

        def replace(args: dict, extra: dict) -> dict:
            return {"img": 0.5 * extra["original_block"](args)["img"]}

        patcher.set_model_patch_replace(replace, "dit", "single_block", 1)
    else:
        patcher.add_wrapper_with_key(
            "diffusion_model", "test", lambda run, *args, **kwargs: 0.5 * run(*args, **kwargs)
        )


@pytest.mark.parametrize(
    "what", ["attention override", "output patch", "double block", "replacement", "wrapper"]
)
def test_what_others_hang_on_the_model_runs_in_every_step(model: ModelPatcher, what: str) -> None:
    fast, kept = recorded(model)
    plain = model.clone()
    picture(fast)
    replays = kept.replays
    for patcher in (fast, plain):
        patcher.model_options.setdefault("transformer_options", {})
        patched(patcher, what)
    assert torch.equal(picture(fast), picture(plain))
    assert kept.replays == replays and kept.reason


def test_streamed_weights_are_not_recorded(model: ModelPatcher) -> None:
    fast, kept = recorded(model)
    management.free_memory(1e30, management.get_torch_device())
    network = model.model.diffusion_model
    linear = network.layers[0].feed_forward.w1
    expected = picture(model)
    linear.weight_function = [lambda weight: weight]
    try:
        assert torch.equal(picture(fast), expected) and "LoRA" in kept.reason and not kept.kept
    finally:
        linear.weight_function = []


@pytest.mark.parametrize("kind", HOSTS_KINDS)
def test_quantised_weights_are_recorded(
    model: ModelPatcher, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    narrow = eight_bit.in_eight_bits(model, eight_bit.weights_for(model, kind), kind)
    fast, _ = recorded(narrow)
    assert torch.equal(picture(fast), picture(narrow))
    assert "3 of 4 forwards by CUDA graphs" in caplog.text


def test_graphs_go_when_the_model_is_unloaded(model: ModelPatcher) -> None:
    fast, kept = recorded(model)
    picture(fast)
    assert kept.kept
    fast.detach()
    assert not kept.kept


def test_a_clone_after_a_run_shares_the_graphs(
    model: ModelPatcher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some hosts copy all that a MODEL's options hold, and no recording of a card can be copied."""

    def refuse(recorder: Recorder, memo: dict) -> None:
        raise TypeError("cannot pickle 'CUDAGraph' object")

    monkeypatch.setattr(Recorder, "__deepcopy__", refuse, raising=False)
    caplog.set_level("INFO")
    fast, kept = recorded(model)
    expected = picture(fast)
    clone = fast.clone()
    assert torch.equal(picture(clone), expected)
    assert caplog.text.count("of 4 forwards by CUDA graphs") == 2
    clone.detach()
    assert not kept.kept


def test_compiled_once_for_all_blocks_prompts_and_sizes(model: ModelPatcher) -> None:
    torch._dynamo.reset()
    counters.clear()
    fast, lines = speed.sped_up(model, "compiled")
    assert lines[0].startswith("torch.compile: on")
    seen = []
    for size, length in (((8, 12), 40), ((10, 14), 70), ((6, 8), 130)):
        positive, negative = prompts(CONFIG.cap_feat_dim, length, 9)  # two calls of the network in each step
        more = {"steps": 2, "cfg": 3.0, "noise": noise_of(size)}
        made = sampled(fast, positive, negative, **more)
        assert relative(made, sampled(model, positive, negative, **more)) < 1e-5
        seen.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert seen[0] == seen[-1] <= 2, seen  # blocks that have a number for patches, and the refiner's


def test_eight_bits_on_a_card_that_has_them(model: ModelPatcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the host's own quantised operations, where it has them; else the exact results and a reason."""
    change = torch.randn(CONFIG.dim, CONFIG.ffn_dim, generator=torch.Generator().manual_seed(1)) / 30
    model = model.clone()
    model.add_patches({"diffusion_model.layers.1.feed_forward.w2.weight": (change,)})
    model.model_options.setdefault("transformer_options", {})["kept"] = "of another node"
    expected = picture(model)
    for kind, bound in (("fp8", 0.4), ("int8", 0.2)):
        with monkeypatch.context() as patch:
            patch.setattr(speed, "eight_bit_kind", lambda kind=kind: kind)
            faster, lines = speed.sped_up(model, "8-bit")
        made = picture(faster)
        if eight_bit.FORMATS[kind] not in comfy.quant_ops.QUANT_ALGOS:
            assert "newer ones do" in lines[0] and torch.equal(made, expected)
            continue
        assert kind in lines[0]
        assert faster.model_options["transformer_options"]["kept"] == "of another node"
        assert 1e-4 < relative(made, expected) < bound
        assert faster.model_size() < 0.6 * model.model_size()


@pytest.mark.parametrize(
    ("capability", "kind"),
    [((7, 5), None), ((8, 0), "int8"), ((8, 6), "int8"), ((8, 9), "fp8"), ((12, 0), "fp8")],
)
def test_the_eight_bits_of_a_card(
    capability: tuple[int, int], kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "get_torch_device", lambda: CARD)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert eight_bit.eight_bit_kind() == kind


def test_another_model_is_refused() -> None:
    other = SimpleNamespace(get_model_object=lambda name: object(), model=object())
    with pytest.raises(ValueError, match="not Z-Image"):
        speed.sped_up(other, "auto")


def test_a_lora_of_single_prompts_on_packed_weights_is_seen(scratch) -> None:
    """It leaves what is stored where it is; the prompts without it must not get a graph with it."""
    model, _ = test_packed.from_gguf(scratch, "Q4_0")
    change = test_packed.lora(test_packed.STATE)
    positive, negative = test_packed.CAPTIONS
    fast, kept = recorded(model)
    plain = sampled(model, positive, negative, steps=4)
    hooked, _, hooks = comfy.hooks.load_hook_lora_for_models(fast, None, change, 1.0, 0.0)
    with_hooks = conditioning_set_values(positive, {"hooks": hooks})
    assert relative(sampled(hooked, with_hooks, negative, steps=4), plain) > test_packed.EFFECT

    assert "LoRA" in kept.reason
    assert torch.equal(sampled(hooked, positive, negative, steps=4), plain)
