"""Runs inside a ComfyUI's Python: what patches find and do in our MODEL, against attention written out here.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/patches_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

HOST, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:3])

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.core.random_models import random_s3dit, relative  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from zimage_core import S3DiTConfig  # noqa: E402

enter(HOST)
import comfy.sample  # noqa: E402

SEED = int(os.environ.get("ZIMAGE_SEED", "1234"))
CONFIG = S3DiTConfig(dim=256, n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=64)
SHORT, LONG = 21, 70  # caption tokens; they pad to 32 and 96
SCALE, ALPHA, TAU = 5.0, 0.5, 1.5

generator = torch.Generator().manual_seed(SEED)
POSITIVE, NEGATIVE = (
    [[torch.randn(1, length, CONFIG.cap_feat_dim, generator=generator), {}]] for length in (LONG, SHORT)
)


def model(change=lambda state: state):
    """A MODEL of ours from a file with the same random weights each time, changed by `change`."""
    state = change(random_s3dit(CONFIG, SEED).state_dict())
    path = SCRATCH / "small.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return extension_module("nodes.host.loading.model").load_patcher(path, "fp32")


def sampled(patcher, steps: int = 2, cfg: float = 3.0, size: tuple[int, int] = (8, 12)) -> torch.Tensor:
    latent = torch.zeros(1, 16, *size)
    noise = comfy.sample.prepare_noise(latent, SEED)
    inputs = (steps, cfg, "euler", "simple", POSITIVE, NEGATIVE, latent)
    return comfy.sample.sample(patcher, noise, *inputs, disable_pbar=True, seed=SEED)


def attention(q, k, v):
    """[heads, S, D] -> [S, heads * D], in float64."""
    weights = (q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v.double()).transpose(0, 1).flatten(1)


def nag(positive, negative):
    """Normalized Attention Guidance (arXiv 2505.21179) on attention outputs [N, width]."""
    guided = positive * SCALE - negative * (SCALE - 1)
    ratio = guided.norm(p=1, dim=-1, keepdim=True) / positive.norm(p=1, dim=-1, keepdim=True)
    return guided * (ratio.clamp(max=TAU) / ratio) * ALPHA + positive * (1 - ALPHA)


def nag_patch(out, extra):
    """The same as a patch, for hosts that have no node for it."""
    if sorted(extra["cond_or_uncond"]) != [0, 1]:
        return out
    start, end = extra["img_slice"]
    positive, negative = (extra["cond_or_uncond"].index(i) for i in (0, 1))
    out = out.clone()
    out[:, start:end] = nag(out[positive, start:end], out[negative, start:end])
    return out


def with_nag(patcher):
    try:
        from comfy_extras.nodes_nag import NAGuidance
    except ImportError:
        patched = patcher.clone()
        patched.set_model_attn1_output_patch(nag_patch)
        patched.model_options["disable_cfg1_optimization"] = True
        return patched
    return NAGuidance.execute(patcher, SCALE, ALPHA, TAU).result[0]


def nag_by_hand() -> dict:
    """One guided step: what goes into each joint layer's output projection, against the formula on the q, k
    and v that went into its attention.
    """
    seen = []

    def spy(attend, q, k, v, *args, **kwargs):
        seen.append({"q": q, "k": k, "v": v, "order": kwargs["transformer_options"]["cond_or_uncond"]})
        return attend(q, k, v, *args, **kwargs)

    patcher = with_nag(model())
    patcher.model_options["transformer_options"]["optimized_attention_override"] = spy
    projected = []
    for layer in patcher.model.diffusion_model.layers:
        layer.attention.out.register_forward_pre_hook(lambda _, args: projected.append(args[0].clone()))
    sampled(patcher, steps=1, cfg=1.0)
    seen = [s for s in seen if s["q"].shape[2] == LONG + -LONG % 32 + 32]  # joint layers: caption and image
    assert len(seen) == len(projected) == CONFIG.n_layers, (len(seen), len(projected))
    worst = 0.0
    longest = LONG + -LONG % 32
    for record, found in zip(seen, projected, strict=True):
        assert sorted(record["order"]) == [0, 1]
        plain = []
        for sample in range(2):
            caption = (LONG, SHORT)[record["order"][sample]]
            keys = [*range(caption + -caption % 32), *range(longest, record["q"].shape[2])]
            k, v = (record[name][sample][:, keys] for name in "kv")
            plain.append(attention(record["q"][sample], k, v))
        positive, negative = (plain[record["order"].index(i)] for i in (0, 1))
        guided = nag(positive[longest:], negative[longest:])
        for sample in range(2):
            worst = max(worst, relative(found[sample, longest:], guided))
            real = (LONG, SHORT)[record["order"][sample]]
            worst = max(worst, relative(found[sample, :real], plain[sample][:real]))
    return {
        "distance": worst,
        "effect": relative(sampled(with_nag(model()), cfg=1.0), sampled(model(), cfg=1.0)),
    }


def batches() -> dict:
    """Captions of two lengths share a batch when a patch looks at attention, and then only."""
    calls = Counter()

    def counted(patcher, name):
        def wrapper(apply_model, args):
            calls[name, len(args["cond_or_uncond"])] += 1
            return apply_model(args["input"], args["timestep"], **args["c"])

        patcher.set_model_unet_function_wrapper(wrapper)
        return patcher

    apart = sampled(counted(model(), "apart"))
    watched = counted(model(), "together")
    watched.set_model_attn1_output_patch(lambda out, extra: out)
    together = sampled(watched)
    return {"distance": relative(together, apart), "calls": {f"{k} {n}": v for (k, n), v in calls.items()}}


def replaced(kind: str, index: int, run):
    patcher = model()
    patcher.set_model_patch_replace(run, "dit", kind, index)
    return sampled(patcher)


def equalities() -> dict[str, float]:
    """A patch on one side, the same done to the weights on the other."""
    plain = sampled(model())
    found = {}

    def doubled(state):
        keys = [k for k in state if k.startswith("layers.") and k.endswith("q_norm.weight")]
        return state | {k: 2 * state[k] for k in keys}

    patcher = model()
    patcher.set_model_attn1_patch(lambda q, k, v, **_: {"q": 2 * q, "k": k, "v": v})
    found["attn1_patch doubles q"] = relative(sampled(patcher), sampled(model(doubled)))

    def turned(q, k, v, pe, attn_mask, extra_options):
        assert q.shape[:2] == k.shape[:2] == (2, CONFIG.n_heads) and pe.shape[-2:] == (2, 2)
        assert extra_options["n_heads"] == CONFIG.n_heads
        return {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": attn_mask}

    patcher = model()
    patcher.set_model_attn1_patch(turned)
    found["attn1_patch changes nothing"] = relative(sampled(patcher), plain)

    def without_layer_1(state):
        kept = {k: v for k, v in state.items() if not k.startswith("layers.1.")}
        return {k.replace("layers.2.", "layers.1.", 1): v for k, v in kept.items()}

    shorter = sampled(model(without_layer_1))
    for kind in ("double_block", "single_block"):
        found[f"{kind} skipped"] = relative(replaced(kind, 1, lambda args, extra: args), shorter)
        original = replaced(kind, 1, lambda args, extra: extra["original_block"](args))
        found[f"{kind} replaced by itself"] = relative(original, plain)

    def added(kwargs):
        if kwargs["block_index"] == 1:
            kwargs["img"] += 0.25 * kwargs["img_input"]
        kwargs.pop("img"), kwargs.pop("txt")
        return kwargs

    entering = {}

    def remember(args, extra):
        entering["img"] = args["img"].clone()
        return extra["original_block"](args)

    def by_replacement(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": out["img"] + 0.25 * entering["img"]}

    patcher, other = model(), model()
    patcher.set_model_patch(added, "double_block")
    other.set_model_patch_replace(remember, "dit", "double_block", 0)
    other.set_model_patch_replace(by_replacement, "dit", "double_block", 1)
    found["double_block in place"] = relative(sampled(patcher), sampled(other))

    def halved(kwargs):
        return {"img": kwargs["img"] * 0.5}

    def before_layers(args, extra):
        return extra["original_block"]({**args, "img": args["img"] * 0.5})

    patcher, other = model(), model()
    patcher.set_model_patch(halved, "noise_refiner")
    other.set_model_patch_replace(before_layers, "dit", "double_block", 0)
    found["noise_refiner halves the image"] = relative(sampled(patcher), sampled(other))
    assert relative(sampled(patcher), plain) > 1e-3, "the patch changes nothing: it proves nothing"
    return found


answer = {"nag": nag_by_hand(), "batches": batches(), "equalities": equalities()}
sys.stdout.write(json.dumps(answer) + "\n")
