"""ZImageGuider on the server is the guidance of the library's pipeline, which is held to diffusers' own."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.core.random_models import relative
from tests.host.matrix import Graph, saved
from tests.host.weight_files import NANO
from zimage_core import ZImagePipeline

POSITIVE, NEGATIVE = "a red apple on a white background", "a green tree"
STEPS, SEED = 6, 21
# The host keeps the text encoder in half precision: 1e-3 comes from that alone; another setting is far away.
BOUND = 4e-3


@cache
def pipeline() -> ZImagePipeline:
    parts = [NANO / f"{part}.safetensors" for part in ("transformer", "text_encoder", "autoencoder")]
    return ZImagePipeline.from_files(*parts, NANO / "tokenizer", torch_dtype=torch.float32)


def on_the_server(server, scale: float, normalisation: float, truncation: float) -> torch.Tensor:
    g = Graph()
    model = g.add("ZImageModelLoader", transformer="built-in: nano", weight_dtype="fp32")
    guidance = {"guidance_scale": scale, "normalisation": normalisation, "truncation": truncation}
    latent = g.add(
        "SamplerCustomAdvanced",
        noise=g.add("RandomNoise", noise_seed=SEED),
        guider=g.add(
            "ZImageGuider",
            model=model,
            positive=g.prompt(POSITIVE),
            negative=g.prompt(NEGATIVE),
            **guidance,
        ),
        sampler=g.add("KSamplerSelect", sampler_name="euler"),
        sigmas=g.add("ZImageSigmas", steps=STEPS, shift=3.0, denoise=1.0),
        latent_image=g.add(
            "ZImageLatent", size="128x128 (nano)", width=128, height=128, swap=False, batch_size=1
        ),
    )
    output = g.add("SaveLatent", samples=latent, filename_prefix="latents/guider")
    return saved(server, server.run(g.nodes), output)


@pytest.mark.parametrize(
    "scale, normalisation, truncation",
    [(1.5, 0.0, 1.0), (1.5, 0.7, 1.0), (1.5, 0.0, 0.4), (0.0, 0.0, 1.0)],
    ids=["plain", "normalised", "truncated", "off"],
)
def test_as_the_pipeline(server, scale: float, normalisation: float, truncation: float) -> None:
    pipe = pipeline()
    noise = torch.randn(1, 16, 16, 16, generator=torch.manual_seed(SEED))
    expected = pipe(
        POSITIVE,
        NEGATIVE,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        cfg_normalization=normalisation,
        cfg_truncation=truncation,
        height=128,
        width=128,
        latents=noise,
        output_type="latent",
    ).images
    found = on_the_server(server, scale, normalisation, truncation)
    assert relative(found, pipe.autoencoder.from_model(expected)) <= BOUND
    if scale:
        other = on_the_server(server, scale, 0.0 if normalisation else 0.7, truncation)
        assert relative(found, other) > 10 * BOUND
