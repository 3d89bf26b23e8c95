"""Sizes that a model does not draw, and LoRAs that do not fit, on a server: every sampler says it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import save_file

from tests.host.matrix import Graph, Link

NANO = "built-in: nano"
LARGE = {"width": 1024, "height": 1024}


def sampler(g: Graph, model: Link, latent: Link) -> Link:
    settings = {"seed": 1, "steps": 1, "shift": 3.0, "denoise": 1.0}
    return g.add(
        "ZImageTurboSampler", model=model, conditioning=g.prompt("an owl"), latent_image=latent, **settings
    )


def ksampler(g: Graph, model: Link, latent: Link) -> Link:
    return g.ksampler(model, latent_image=latent, steps=1)


def guider(g: Graph, model: Link, latent: Link) -> Link:
    prompt = g.prompt("an owl")
    settings = {"guidance_scale": 1.0, "normalisation": 0.0, "truncation": 1.0}
    return g.add(
        "SamplerCustomAdvanced",
        noise=g.add("RandomNoise", noise_seed=1),
        guider=g.add("ZImageGuider", model=model, positive=prompt, negative=prompt, **settings),
        sampler=g.add("KSamplerSelect", sampler_name="euler"),
        sigmas=g.add("ZImageSigmas", steps=1, shift=3.0, denoise=1.0),
        latent_image=latent,
    )


def edit(g: Graph, model: Link, latent: Link) -> Link:
    image = g.add("EmptyImage", **LARGE, batch_size=1, color=0x20C030)
    settings = {"instruction": "an owl", "route": "img2img", "strength": 1.0, "steps": 1, "seed": 1}
    return g.add("ZImageEdit", model=model, clip=g.clip, vae=g.vae, image=image, **settings)


SAMPLERS: dict[str, Callable[[Graph, Link, Link], Link]] = {
    "ZImageTurboSampler": sampler,
    "KSampler": ksampler,
    "SamplerCustomAdvanced": guider,
    "ZImageEdit": edit,
}


def ended(server, make: Callable[[Graph, Link, Link], Link], size: dict, lora: str | None = None):
    g = Graph()
    model = g.add("ZImageModelLoader", transformer=NANO, weight_dtype="auto")
    if lora:
        model = g.add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
    g.add("SaveLatent", samples=make(g, model, g.empty(**size)), filename_prefix="latents/unfit")
    return server.run(g.nodes)


@pytest.mark.parametrize("name", SAMPLERS)
def test_nano_at_a_large_size_is_an_error_at_the_sampler(server, name: str) -> None:
    result = ended(server, SAMPLERS[name], LARGE)
    (error,) = result.errors
    assert error["class_type"] == name
    assert "the latent is 1024x1024: choose 128x128 (nano) as size in Z-Image Latent" in error["message"]
    assert "full-size weights in Z-Image Loader" in error["message"]


@pytest.mark.parametrize("name", ["ZImageTurboSampler", "KSampler", "SamplerCustomAdvanced"])
def test_a_lora_for_another_model_is_said_in_every_sampler(server, base, name: str) -> None:
    keys = [f"lora_unet_mid_block_{i}.lora_{part}.weight" for i in range(3) for part in ("up", "down")]
    file = {key: torch.ones(4, 4) for key in keys}
    save_file(file, base / "models" / "loras" / "foreign.safetensors")
    mark = len(server.log)
    result = ended(server, SAMPLERS[name], {"width": 128, "height": 128}, "foreign.safetensors")
    assert result.ok
    said = "Z-Image: LoRA foreign.safetensors has no effect: 0 of 6 keys fit this model"
    assert said in server.log[mark:]
    assert "pixels only" not in server.log[mark:]
