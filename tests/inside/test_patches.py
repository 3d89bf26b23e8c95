"""Patches that the host's own Z-Image ignores have their effect on ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from tests.core.random_models import random_s3dit, relative
from tests.inside.sampling import SEED, count_calls, from_file, noise_of, prompts, sampled, stepped
from zimage_core import S3DiTConfig

CLOSE = 1e-5  # relative L2
CONFIG = S3DiTConfig(dim=256, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=64)
STATE = random_s3dit(CONFIG, SEED).state_dict()
SHORT, LONG = 21, 70  # caption tokens; they pad to 32 and 96
POSITIVE, NEGATIVE = prompts(CONFIG.cap_feat_dim, LONG, SHORT)
SCALE, ALPHA, TAU = 5.0, 0.5, 1.5
Patch = Callable[[ModelPatcher], object]


@pytest.fixture(scope="module")
def model(scratch):
    """model() -> a MODEL of ours; model(name, state) -> one of other weights."""
    return lambda name="plain", state=STATE: from_file(scratch / f"{name}.safetensors", state)


def guided(patcher: ModelPatcher, *patches: Patch, steps: int = 2, cfg: float = 3.0) -> Tensor:
    for patch in patches:
        patch(patcher)
    return sampled(patcher, POSITIVE, NEGATIVE, steps=steps, cfg=cfg)


def in_place_of(index: int, run: Callable, kind: str = "double_block") -> Patch:
    return lambda patcher: patcher.set_model_patch_replace(run, "dit", kind, index)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[heads, S, D] -> [S, heads * D], in float64."""
    weights = (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v.double()).transpose(0, 1).flatten(1)


def nag(positive: Tensor, negative: Tensor) -> Tensor:
    """Normalized Attention Guidance (arXiv 2505.21179) on attention outputs [N, width]."""
    guided = positive * SCALE - negative * (SCALE - 1)
    ratio = guided.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
    return guided * (ratio.clamp(max=TAU) / ratio) * ALPHA + positive * (1 - ALPHA)


def nag_patch(out: Tensor, extra: dict) -> Tensor:
    """The same as a patch, for hosts that have no node for it."""
    if sorted(extra["cond_or_uncond"]) != [0, 1]:
        return out
    start, end = extra["img_slice"]
    positive, negative = (extra["cond_or_uncond"].index(i) for i in (0, 1))
    out = out.clone()
    out[:, start:end] = nag(out[positive, start:end], out[negative, start:end])
    return out


def with_nag(patcher: ModelPatcher) -> ModelPatcher:
    try:
        from comfy_extras.nodes_nag import NAGuidance
    except ImportError:
        patched = patcher.clone()
        patched.set_model_attn1_output_patch(nag_patch)
        patched.model_options["disable_cfg1_optimization"] = True
        return patched
    return NAGuidance.execute(patcher, SCALE, ALPHA, TAU).result[0]


def test_nag_is_what_the_paper_says(model) -> None:
    """Positive and negative of different lengths in one batch, at cfg 1 as for Turbo.

    By the core node where the host has it; what goes into each joint layer's output projection, against the
    formula in float64 on the q, k and v that went into its attention.
    """
    seen, projected = [], []

    def spy(attend, q, k, v, *args, **kwargs):
        seen.append({"q": q, "k": k, "v": v, "order": kwargs["transformer_options"]["cond_or_uncond"]})
        return attend(q, k, v, *args, **kwargs)

    patcher = with_nag(model())
    patcher.model_options["transformer_options"]["optimized_attention_override"] = spy
    for layer in patcher.model.diffusion_model.layers:
        layer.attention.out.register_forward_pre_hook(lambda _, args: projected.append(args[0].clone()))
    guided(patcher, steps=1, cfg=1.0)
    longest = LONG + -LONG % 32
    seen = [s for s in seen if s["q"].shape[2] == longest + 32]  # joint layers: caption and image
    assert len(seen) == len(projected) == CONFIG.n_layers
    for record, found in zip(seen, projected, strict=True):
        assert sorted(record["order"]) == [0, 1]
        plain = []
        for sample in range(2):
            caption = (LONG, SHORT)[record["order"][sample]]
            keys = [*range(caption + -caption % 32), *range(longest, record["q"].shape[2])]
            k, v = (record[name][sample][:, keys] for name in "kv")
            plain.append(attention(record["q"][sample], k, v))
        positive, negative = (plain[record["order"].index(i)] for i in (0, 1))
        expected = nag(positive[longest:], negative[longest:])
        for sample in range(2):
            assert relative(found[sample, longest:], expected) <= CLOSE
            real = (LONG, SHORT)[record["order"][sample]]
            assert relative(found[sample, :real], plain[sample][:real]) <= CLOSE


def test_nag_has_an_effect(model) -> None:
    assert relative(guided(with_nag(model()), cfg=1.0), guided(model(), cfg=1.0)) > 1e-2


def test_captions_of_two_lengths_in_one_batch(model) -> None:
    """Two guided steps: one call each where a patch looks at attention, else one for each caption."""
    alone, watched = model(), model()
    calls_apart, calls_together = count_calls(alone), count_calls(watched)
    watched.set_model_attn1_output_patch(lambda out, extra: out)
    assert relative(guided(watched), guided(alone)) <= CLOSE
    assert (calls_apart, calls_together) == ({1: 4}, {2: 2})


def test_attn1_patch_doubles_q(model) -> None:
    doubled = [k for k in STATE if k.startswith("layers.") and k.endswith("q_norm.weight")]
    by_weights = model("doubled", STATE | {k: 2 * STATE[k] for k in doubled})
    patched = model()
    patched.set_model_attn1_patch(lambda q, k, v, **_: {"q": 2 * q, "k": k, "v": v})
    assert relative(guided(patched), guided(by_weights)) <= CLOSE


def test_attn1_patch_that_changes_nothing(model) -> None:
    def look(q, k, v, pe, attn_mask, extra_options):
        assert q.shape[:2] == k.shape[:2] == (2, CONFIG.n_heads) and pe.shape[-2:] == (2, 2)
        assert extra_options["n_heads"] == CONFIG.n_heads
        return {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": attn_mask}

    patched = model()
    patched.set_model_attn1_patch(look)
    assert relative(guided(patched), guided(model())) <= CLOSE


@pytest.mark.parametrize("kind", ["double_block", "single_block"])
def test_a_block_that_is_skipped(model, kind: str) -> None:
    """As weights without it."""
    kept = {k: v for k, v in STATE.items() if not k.startswith("layers.1.")}
    shorter = model("shorter", {k.replace("layers.2.", "layers.1.", 1): v for k, v in kept.items()})
    skipped = guided(model(), in_place_of(1, lambda args, extra: args, kind))
    assert relative(skipped, guided(shorter)) <= CLOSE


@pytest.mark.parametrize("kind", ["double_block", "single_block"])
def test_a_block_that_is_replaced_by_itself(model, kind: str) -> None:
    itself = in_place_of(1, lambda args, extra: extra["original_block"](args), kind)
    assert relative(guided(model(), itself), guided(model())) <= CLOSE


def test_double_block_patch_changes_the_image_in_place(model) -> None:
    """Its img_input is what the image was before the blocks: as replacements that remember it."""
    entering = {}

    def added(kwargs: dict) -> dict:
        if kwargs["block_index"] == 1:
            kwargs["img"] += 0.25 * kwargs["img_input"]
        kwargs.pop("img"), kwargs.pop("txt")
        return kwargs

    def remember(args: dict, extra: dict) -> dict:
        entering["img"] = args["img"].clone()
        return extra["original_block"](args)

    def by_replacement(args: dict, extra: dict) -> dict:
        out = extra["original_block"](args)
        return {**out, "img": out["img"] + 0.25 * entering["img"]}

    patched = guided(model(), lambda patcher: patcher.set_model_patch(added, "double_block"))
    replaced = guided(model(), in_place_of(0, remember), in_place_of(1, by_replacement))
    assert relative(patched, replaced) <= CLOSE


def test_noise_refiner_patch_halves_the_image(model) -> None:
    def halved(kwargs: dict) -> dict:
        return {"img": kwargs["img"] * 0.5}

    def before_layers(args: dict, extra: dict) -> dict:
        return extra["original_block"]({**args, "img": args["img"] * 0.5})

    patched = guided(model(), lambda patcher: patcher.set_model_patch(halved, "noise_refiner"))
    assert relative(patched, guided(model(), in_place_of(0, before_layers))) <= CLOSE
    assert relative(patched, guided(model())) > 1e-3, "the patch changes nothing: it proves nothing"


RAMP, EARLIER = torch.arange(CONFIG.cap_feat_dim) / 20, 0.8


def as_function(apply_model: Callable, args: dict) -> Tensor:
    x, sigma, conds = args["input"], args["timestep"], args["c"]
    other = {**conds, "c_crossattn": conds["c_crossattn"] + sigma.max() * RAMP}
    return (apply_model(x, sigma, **conds) + apply_model(x, sigma * EARLIER, **other)) / 2


def around_the_model(
    call: Callable, x: Tensor, sigma: Tensor, concat: None, caption: Tensor, *more, **conds
) -> Tensor:
    first = call(x, sigma, concat, caption, *more, **conds)
    return (first + call(x, sigma * EARLIER, concat, caption + sigma.max() * RAMP, *more, **conds)) / 2


def around_the_network(call: Callable, x: Tensor, sigma: Tensor, caption: Tensor, *more, **options) -> Tensor:
    other = caption + sigma.max() * RAMP
    return (call(x, sigma, caption, *more, **options) + call(x, sigma * EARLIER, other, *more, **options)) / 2


WRAPPERS = {
    "function": lambda patcher: patcher.set_model_unet_function_wrapper(as_function),
    "model": lambda patcher: patcher.add_wrapper(WrappersMP.APPLY_MODEL, around_the_model),
    "network": lambda patcher: patcher.add_wrapper(WrappersMP.DIFFUSION_MODEL, around_the_network),
}


@pytest.mark.parametrize("way", WRAPPERS)
def test_a_wrapper_calls_with_another_caption_and_time(model, way: str) -> None:
    """In each step once as the sampler has them, once not: what a run repeats is not taken for the same."""
    library, caption, patched = random_s3dit(CONFIG, SEED), POSITIVE[0][0], model()
    share = 1.0 if way == "network" else EARLIER  # a velocity counts by the sigma of its call

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        other = library(x, sigma * EARLIER, caption + sigma * RAMP)
        return (library(x, sigma, caption) + share * other) / 2

    WRAPPERS[way](patched)
    found = sampled(patched, POSITIVE, NEGATIVE, steps=3)
    assert relative(found, stepped(model(), velocity, 3, noise_of())) <= CLOSE
