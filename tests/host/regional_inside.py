"""Runs inside a ComfyUI's Python: prompts for regions from the node to what our MODEL predicts.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/regional_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
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
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.core.random_models import random_s3dit, relative  # noqa: E402
from tests.host import matrix  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from zimage_core.conditions.regions import Region, Regions  # noqa: E402
from zimage_core.model.s3dit import Prompt  # noqa: E402
from zimage_core.model.sequence import Captions  # noqa: E402

enter(HOST)
import comfy.sample  # noqa: E402
from comfy.ldm.modules import attention  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent))
import small_native  # noqa: E402

SEED = int(os.environ.get("ZIMAGE_SEED", "1234"))
NETWORK = random_s3dit(matrix.SMALL_CONFIG, SEED)
save_file(NETWORK.state_dict(), SCRATCH / "small.safetensors")
add_region = extension_module("nodes.regional").ZImageRegionalPrompt.execute
accelerated = extension_module("nodes.host.running.accelerate").accelerated

generator = torch.Generator().manual_seed(SEED)


def prompt(length: int) -> list:
    return [[torch.randn(1, length, matrix.CAPTION, generator=generator), {}]]


BASE, LONG, SHORT, NEGATIVE = prompt(21), prompt(40), prompt(9), prompt(5)
HEIGHT, WIDTH = 8, 12  # of the latent


def box(top: float, left: float, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    mask = torch.zeros(1, height, width)
    mask[:, int(top * height) :, int(left * width) :] = 1.0
    return mask


def with_region(conditioning: list, region: list, mask: torch.Tensor, strength: float = 1.0) -> list:
    return add_region(conditioning, region, mask, strength).result[0]


def model():
    return extension_module("nodes.host.loading.model").load_patcher(SCRATCH / "small.safetensors", "fp32")


def sampled(patcher, positive, negative=NEGATIVE, cfg=1.0, size=(HEIGHT, WIDTH), batch=1, steps=2):
    latent = torch.zeros(batch, 16, *size)
    noise = comfy.sample.prepare_noise(latent, SEED)
    inputs = (steps, cfg, "euler", "simple", positive, negative, latent)
    return comfy.sample.sample(patcher, noise, *inputs, disable_pbar=True, seed=SEED)


def by_library(size=(HEIGHT, WIDTH), weights=(), noise=None) -> torch.Tensor:
    """The same two Euler steps without ComfyUI; weights: of the regions LONG and SHORT."""
    latent = torch.zeros(1, 16, *size)
    x = comfy.sample.prepare_noise(latent, SEED) if noise is None else noise
    parts = zip((LONG, SHORT), weights, strict=False)
    regions = [Region(Captions.whole(c[0][0]), weight) for c, weight in parts]

    def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        prompt = Prompt(Captions.whole(BASE[0][0]))
        return NETWORK(x, sigma, condition=Regions(prompt, regions) if regions else prompt)

    sampling = model().get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", 2)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = x + (following - sigma) * velocity(x, sigma[None])
    return model().model.process_latent_out(x)


def distances() -> dict[str, float]:
    """Of a run with the nodes from the same without ComfyUI, or from a run that must be the same."""
    found = {}
    right, low = box(0, 0.5), box(0.5, 0)
    two = with_region(with_region(BASE, LONG, right), SHORT, low, 0.5)
    found["two regions"] = relative(sampled(model(), two), by_library(weights=(right, 0.5 * low)))
    found["a mask in pixels"] = relative(
        sampled(model(), with_region(BASE, LONG, box(0, 0.5, 8 * HEIGHT, 8 * WIDTH))),
        by_library(weights=(right,)),
    )
    odd = (7, 9)
    found["odd size"] = relative(
        sampled(model(), with_region(BASE, LONG, box(0.5, 0, *odd)), size=odd),
        by_library(odd, (box(0.5, 0, *odd),)),
    )
    found["empty mask"] = relative(
        sampled(model(), with_region(BASE, LONG, 0 * right)), sampled(model(), BASE)
    )
    found["strength 0"] = relative(
        sampled(model(), with_region(BASE, LONG, right, 0.0)), sampled(model(), BASE)
    )
    found["everywhere"] = relative(
        sampled(model(), with_region(BASE, LONG, torch.ones(1, 4, 4))), sampled(model(), LONG)
    )
    noise = comfy.sample.prepare_noise(torch.zeros(2, 16, HEIGHT, WIDTH), SEED)
    batch = sampled(model(), with_region(BASE, LONG, torch.cat((right, low))), batch=2)
    each = [by_library(weights=(w,), noise=noise[i : i + 1]) for i, w in enumerate((right, low))]
    found["a batch, each with its mask"] = relative(batch, torch.cat(each))
    native = small_native.patcher(NETWORK.state_dict())
    found["accelerated"] = relative(
        sampled(accelerated(native)[0], with_region(BASE, LONG, right)), by_library(weights=(right,))
    )
    whole = [[c, {**given, "area": (HEIGHT, WIDTH, 0, 0)}] for c, given in with_region(BASE, LONG, right)]
    found["an area that is all"] = relative(sampled(model(), whole), by_library(weights=(right,)))
    return found


def with_sage() -> float:
    """Distance with a SageAttention that leaves masks out, as its fast kernels do."""
    regional, chosen = with_region(BASE, LONG, box(0, 0.5)), attention.optimized_attention_masked
    plain = sampled(model(), regional)
    attention.sageattn = lambda q, k, v, **_: F.scaled_dot_product_attention(q, k, v)
    attention.optimized_attention_masked = attention.attention_sage
    try:
        return relative(sampled(model(), regional), plain)
    finally:
        attention.optimized_attention_masked = chosen


def area_of_the_mask() -> dict[str, float]:
    """A conditioning for the right half: its region's mask is cut out with the latent."""
    seen = {}

    def wrapper(apply_model, args):
        if "regions" in args["c"]:
            seen["weight"] = args["c"]["regions"][0].weight
        return apply_model(args["input"], args["timestep"], **args["c"])

    patcher = model()
    patcher.set_model_unet_function_wrapper(wrapper)
    mask = box(0.5, 0.75)
    half = [[c, {**given, "area": (8, 6, 0, 6)}] for c, given in with_region(BASE, LONG, mask)]
    sampled(patcher, [*half, *BASE])
    return {"distance": relative(seen["weight"], mask[:, :, 6:])}


def together() -> dict:
    """Guided, without and with a patch that compares positive and negative: the same, in half the calls."""
    calls = Counter()

    def counted(patcher, name):
        def wrapper(apply_model, args):
            calls[name, len(args["cond_or_uncond"])] += 1
            return apply_model(args["input"], args["timestep"], **args["c"])

        patcher.set_model_unet_function_wrapper(wrapper)
        return patcher

    regional = with_region(with_region(BASE, LONG, box(0, 0.5)), SHORT, box(0.5, 0))
    found = {}
    for name, negative in (
        ("plain negative", NEGATIVE),
        ("regional negative", with_region(NEGATIVE, SHORT, box(0, 0))),
    ):
        apart = sampled(counted(model(), "apart"), regional, negative, cfg=3.0)
        watched = counted(model(), "together")
        watched.set_model_attn1_output_patch(lambda out, extra: out)
        found[name] = relative(sampled(watched, regional, negative, cfg=3.0), apart)
    return {"distances": found, "calls": {f"{k} {n}": v for (k, n), v in calls.items()}}


def refusals() -> dict[str, str]:
    found = {}

    def refused(name: str, run) -> None:
        try:
            run()
            found[name] = ""
        except ValueError as error:
            found[name] = str(error)

    regional = with_region(BASE, LONG, box(0, 0.5))
    native = small_native.patcher(NETWORK.state_dict())
    refused("the host's own network", lambda: sampled(native, regional))
    refused("a region of regions", lambda: with_region(BASE, regional, box(0, 0.5)))
    refused("several prompts", lambda: with_region(BASE, BASE + LONG, box(0, 0.5)))
    narrow = [[LONG[0][0][..., :7], {}]]
    refused("another text encoder", lambda: sampled(model(), with_region(BASE, narrow, box(0, 0.5))))
    return found


with torch.no_grad():
    answer = {
        "distances": distances(),
        "area": area_of_the_mask(),
        "sage": with_sage(),
        "together": together(),
        "refusals": refusals(),
    }
sys.stdout.write(json.dumps(answer) + "\n")
