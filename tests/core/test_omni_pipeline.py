"""Reference pictures and a prompt to latents: the pipeline against diffusers' omni pipeline."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageOmniPipeline
from PIL import Image
from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

from tests.core.peers import diffusers_of
from tests.core.random_models import random_s3dit, randomise, relative
from tests.core.small_diffusers import small_parts
from tests.core.test_omni import Peer
from tests.core.test_pipeline import DIT, PROMPTS
from zimage_core import ZImagePipeline
from zimage_core.conditions.reference_image import prepare_reference

OMNI = replace(DIT, siglip_feat_dim=64)
# 128 x 128 pixels are 2 x 2 patches of 64 and 16 x 16 latent cells: nothing is scaled, positions agree
PATCH, PATCHES = 64, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diffusers_omni")
    text_encoder, tokenizer, vae = small_parts()
    siglip = Siglip2VisionConfig(
        hidden_size=OMNI.siglip_feat_dim, intermediate_size=96, num_hidden_layers=2, num_attention_heads=1,
        patch_size=PATCH, num_patches=PATCHES,
    )  # fmt: skip
    ZImageOmniPipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae,
        text_encoder,
        tokenizer,
        diffusers_of(random_s3dit(OMNI, 3)),
        randomise(Siglip2VisionModel(siglip), 4),
        Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=PATCHES),
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(folder)


@pytest.fixture
def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ZImageOmniPipeline:
    """It encodes references in bfloat16, whatever the autoencoder is in: here that is left out."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)
    pipe = ZImageOmniPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.__class__ = Peer
    return pipe


def pictures(*sizes: tuple[int, int]) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(6)
    return [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=generator).numpy())
        for h, w in sizes
    ]


RUNS = {
    "two references": {"num_inference_steps": 2, "guidance_scale": 0.0},
    "guided": {"num_inference_steps": 2, "guidance_scale": 4.0, "negative_prompt": ["blurry", "text"]},
}


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_diffusers(name: str, ours: ZImagePipeline, theirs: ZImageOmniPipeline) -> None:
    images = pictures((128, 128), (128, 128))[: 2 if name == "two references" else 1]
    noise = torch.randn(2, 16, 8, 6, generator=torch.Generator().manual_seed(4))
    options = {"height": 64, "width": 48, "latents": noise, "output_type": "latent", **RUNS[name]}
    expected = theirs(image=images, prompt=list(PROMPTS), **copy.deepcopy(options)).images
    found = ours(PROMPTS, image=images, **options).images
    assert relative(found, expected) <= 1e-4
    assert relative(ours(PROMPTS, **options).images, expected) > 1e-2, "the references change nothing"


def test_the_size_is_that_of_the_last_reference(ours: ZImagePipeline) -> None:
    options = {"num_inference_steps": 1, "output_type": "latent"}
    found = ours("a red fox", image=pictures((128, 128), (90, 150)), **options).images
    assert found.shape[-2:] == (80 // 8, 144 // 8)


def test_a_reference_may_be_a_tensor(ours: ZImagePipeline) -> None:
    (image,) = pictures((64, 48))
    tensor = torch.tensor(list(image.tobytes())).view(64, 48, 3) / 255
    options = {"num_inference_steps": 1, "output_type": "latent", "latents": torch.zeros(1, 16, 8, 6)}
    expected = ours("a red fox", image=image, **options).images
    assert torch.equal(ours("a red fox", image=[tensor], **options).images, expected)


def test_a_large_reference_is_scaled_as_diffusers_does() -> None:
    """To its own proportions and the area, then cut to whole patches."""
    (image,) = pictures((300, 200))
    tensor = torch.tensor(list(image.tobytes())).view(1, 300, 200, 3) / 255
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    small = Flux2ImageProcessor._resize_to_target_area(image, 128 * 128)
    expected = Flux2ImageProcessor(vae_scale_factor=16).preprocess(
        small, height=small.height // 16 * 16, width=small.width // 16 * 16, resize_mode="crop"
    )
    found = prepare_reference(tensor, limit=128 * 128)
    assert found.seen.shape == (1, small.height, small.width, 3)
    assert torch.allclose(found.encoded.movedim(-1, 1) * 2 - 1, expected, atol=1e-6)


def test_what_is_missing_is_named(ours: ZImagePipeline) -> None:
    parts = ours.text_encoder, ours.autoencoder, ours.tokenizer
    (image,) = pictures((64, 64))
    with pytest.raises(ValueError, match="need omni weights"):
        ZImagePipeline(random_s3dit(DIT, 0), *parts, ours.vision)("a fox", image=image)
    with pytest.raises(ValueError, match="and their vision encoder"):
        ZImagePipeline(ours.transformer, *parts)("a fox", image=image)
    with pytest.raises(ValueError, match="regions and reference images cannot go together"):
        ours("a fox", image=image, regions=[("a dog", torch.ones(2, 2))])
    with pytest.raises(ValueError, match="is 300x10 pixels: each side must have 16"):
        ours("a fox", image=pictures((10, 300)))
    with pytest.raises(ValueError, match=r"is 70000x17 pixels, which is made 65\d+x15 for the model"):
        ours("a fox", image=pictures((17, 70000)))
