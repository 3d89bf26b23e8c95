"""Positive and negative of different lengths in one call of our network, apart where others look inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import comfy.model_management as management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.modules import attention as host_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode
from torch import Tensor

from tests.core.random_models import random_s3dit, relative
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.packs import small_native
from tests.inside.sampling import SEED, SIZE, from_file, in_windows, noise_of, prompts, sampled
from zimage_core.model.hooks import BlockHook

CLOSE = 1e-5  # relative L2
NETWORK = random_s3dit(matrix.SMALL_CONFIG, SEED)
LONG, SHORT, REGION = prompts(matrix.CAPTION, 70, 9, 21)  # the first two pad to 96 and 32
TOGETHER, APART = {2: 2}, {1: 4}  # conditionings in a call: how many calls in two steps
with_region = extension_module("nodes.regional").ZImageRegionalPrompt.execute
one_pass = extension_module("nodes.host.running.one_pass")
accelerated = extension_module("nodes.host.running.accelerate").accelerated
Change = Callable[[ModelPatcher], object]


@pytest.fixture(scope="module")
def model(scratch) -> ModelPatcher:
    return from_file(scratch / "small.safetensors", NETWORK.state_dict())


@contextmanager
def counted(patcher: ModelPatcher) -> Iterator[Counter[int]]:
    """Calls of the network by how many conditionings they are for, seen from outside of all wrappers."""
    calls: Counter[int] = Counter()

    def count(module: object, args: tuple, kwargs: dict) -> None:
        calls[len(kwargs["transformer_options"]["cond_or_uncond"])] += 1

    handle = patcher.get_model_object("diffusion_model").register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def guided(
    patcher: ModelPatcher, positive: list = LONG, negative: list = SHORT, noise: Tensor | None = None
) -> tuple[Tensor, dict[int, int]]:
    """Latents of two guided steps, and the calls of the network."""
    with counted(patcher) as calls:
        made = sampled(patcher, positive, negative, cfg=4.0, noise=noise)
    return made, dict(calls)


def wrapped(patcher: ModelPatcher) -> ModelPatcher:
    """One that changes nothing, around which the host calls the network for each conditioning by itself."""
    patcher = patcher.clone()
    patcher.set_model_unet_function_wrapper(
        lambda apply_model, args: apply_model(args["input"], args["timestep"], **args["c"])
    )
    return patcher


@pytest.mark.parametrize("size", [SIZE, (7, 9), (16, 16)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_call_a_step_makes_the_same_latents(model, size: tuple[int, int], batch: int) -> None:
    noise = noise_of(size, batch)
    apart, each = guided(wrapped(model), noise=noise)
    together, both = guided(model, noise=noise)
    assert (each, both) == (APART, TOGETHER)
    assert relative(together, apart) <= CLOSE
    native, _ = guided(small_native.patcher(NETWORK.state_dict()), noise=noise)
    assert relative(together, native) <= CLOSE


def test_a_kernel_for_both_where_attention_is_left_to_torch(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not where the user has chosen another one."""
    backends, calls = extension_module("zimage_core.model.backends"), []
    here = (str(management.get_torch_device()), None)

    def kernel(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *_: object) -> Tensor:
        calls.append(starts.tolist())
        parts = [tuple(t[a:b].transpose(0, 1) for t in (q, k, v)) for a, b in pairwise(starts.tolist())]
        return torch.cat([F.scaled_dot_product_attention(*part).transpose(0, 1) for part in parts])

    expected, _ = guided(model)
    monkeypatch.setattr(backends, "CHOSEN", {here: None})
    monkeypatch.setattr(backends, "PACKED", {here: kernel})
    monkeypatch.setattr(backends, "HALF", (torch.float32,))
    monkeypatch.setattr(host_attention, "optimized_attention_masked", host_attention.attention_pytorch)
    made, both = guided(model)
    assert both == TOGETHER and relative(made, expected) <= CLOSE
    assert {len(starts) for starts in calls} == {3}
    calls.clear()
    monkeypatch.setattr(host_attention, "optimized_attention_masked", host_attention.attention_sub_quad)
    made, both = guided(model)
    assert both == TOGETHER and relative(made, expected) <= CLOSE and not calls


def test_by_accelerate(model) -> None:
    made, calls = guided(accelerated(small_native.patcher(NETWORK.state_dict()))[0])
    assert calls == TOGETHER and relative(made, guided(model)[0]) <= CLOSE


def test_two_calls_where_the_memory_is_short(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the host decides for any batch."""
    together, _ = guided(model)
    one = model.model.memory_required([1, 16, *SIZE], cond_shapes={"c_crossattn": [[1, 96, matrix.CAPTION]]})
    monkeypatch.setattr(management, "get_free_memory", lambda *args, **kwargs: 1.6 * one)
    apart, calls = guided(model)
    assert calls == APART and relative(together, apart) <= CLOSE


def test_a_part_of_the_picture_in_windows(model) -> None:
    windows = in_windows(model, 6)
    apart, each = guided(wrapped(windows))
    together, both = guided(windows)
    assert (each, both) == ({1: 8}, {2: 4}) and relative(together, apart) <= CLOSE


def test_parts_with_prompts_of_their_own(model) -> None:
    """Of equal size: those of one place are packed, others are not."""
    left, right = ((SIZE[0], 6, 0, start) for start in (0, 6))
    positive = [[LONG[0][0], {"area": left}], [REGION[0][0], {"area": right}], [SHORT[0][0], {"area": left}]]
    apart, _ = guided(wrapped(model), positive, LONG)
    made, calls = guided(model, positive, LONG)
    assert relative(made, apart) <= CLOSE and sum(calls.values()) < 2 * 5


def test_regions_stay_apart(model) -> None:
    positive = with_region(LONG, REGION, torch.ones(1, 4, 4), 0.5).result[0]
    made, calls = guided(model, positive)
    assert calls == APART and torch.equal(made, guided(wrapped(model), positive)[0])


SEEN = {
    "a wrapper of the model": lambda patcher: patcher.add_wrapper(
        WrappersMP.APPLY_MODEL, lambda call, *args, **kwargs: call(*args, **kwargs)
    ),
    "a wrapper of the network": lambda patcher: patcher.add_wrapper(
        WrappersMP.DIFFUSION_MODEL, lambda call, *args, **kwargs: call(*args, **kwargs)
    ),
    "a patch behind blocks": lambda patcher: patcher.set_model_double_block_patch(lambda args: {}),
    "a block's replacement": lambda patcher: patcher.set_model_patch_replace(
        lambda args, more: more["original_block"](args), "dit", "double_block", 0
    ),
    "another attention": lambda patcher: patcher.model_options["transformer_options"].update(
        optimized_attention_override=lambda attend, *args, **kwargs: attend(*args, **kwargs)
    ),
    "what compiles blocks": lambda patcher: patcher.model_options["transformer_options"].update(
        {one_pass.COMPILED: BlockHook()}
    ),
}


@pytest.mark.parametrize("what", SEEN)
def test_apart_for_what_looks_into_the_network(model, what: str) -> None:
    """Each finds one sequence a row, as ever."""
    changed = model.clone()
    SEEN[what](changed)
    made, calls = guided(changed)
    assert calls == APART and torch.equal(made, guided(wrapped(model))[0])


def test_calls_with_and_without_patches_in_one_run(model) -> None:
    """As nodes do that ask for both conditionings once more with blocks of theirs."""

    def block(args: dict, more: dict) -> dict:
        sides = args["transformer_options"]["cond_or_uncond"]
        rows = zip(args["img"].split(1), sides, strict=True)
        return {"img": torch.cat([row * (1 + side) for row, side in rows])}

    def again(args: dict) -> Tensor:
        options = comfy.model_patcher.create_model_options_clone(args["model_options"])
        options = comfy.model_patcher.set_model_options_patch_replace(
            options, block, "dit", "single_block", 1
        )
        conds = [args["cond"], args["uncond"]]
        other, _ = comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], options)
        return args["denoised"] + 0.5 * (args["cond_denoised"] - other)

    made = []
    for patcher in (model, wrapped(model)):
        patcher = patcher.clone()
        patcher.set_model_sampler_post_cfg_function(again)
        made.append(guided(patcher)[0])
    assert relative(*made) <= CLOSE and relative(made[0], guided(model)[0]) > 1e-2


def test_easycache_skips_as_ever(model) -> None:
    """It compares the network's answers between steps."""

    def run(patcher: ModelPatcher) -> tuple[Tensor, dict]:
        cached = EasyCacheNode.execute(patcher, 3.0, 0.0, 1.0, False).result[0]
        with counted(patcher) as calls:
            made = sampled(cached, LONG, SHORT, steps=6, cfg=4.0)
        return made, dict(calls)

    made, calls = run(model)
    assert calls == {1: 12}, "the wrapper answers, but the count is of what asks"
    assert torch.equal(made, run(wrapped(model))[0])
