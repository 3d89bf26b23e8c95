"""Prompt to latents and pixels: the pipeline against diffusers', on a folder that diffusers itself wrote."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers import ZImageControlNetPipeline as PeerControlPipeline
from diffusers import ZImagePipeline as PeerPipeline

from tests.core.peers import ZImageTransformer2DModel, diffusers_control_of, diffusers_of
from tests.core.random_models import random_s3dit, randomise, relative
from tests.core.small_diffusers import small_parts
from zimage_core import AutoencoderKL, S3DiTConfig, ZImagePipeline
from zimage_core.conditions.control import Control, ControlNet
from zimage_core.conditions.regions import region
from zimage_core.config import ControlConfig
from zimage_core.prompt.template import TEMPLATE, apply_template, tokenise

DIT = S3DiTConfig(dim=256, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=128, t_hidden=1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model in diffusers' layout, the transformer in several shards."""
    path = tmp_path_factory.mktemp("diffusers_model")
    text_encoder, tokenizer, vae = small_parts()
    transformer = diffusers_of(random_s3dit(DIT, 3))
    assert isinstance(transformer, ZImageTransformer2DModel)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    PeerPipeline(scheduler, vae, text_encoder, tokenizer, transformer).save_pretrained(path)
    transformer.save_pretrained(path / "transformer", max_shard_size="2MB")
    (path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert len(list((path / "transformer").glob("*.safetensors"))) > 2
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> ZImagePipeline:
    return ZImagePipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PeerPipeline:
    pipe = PeerPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


PROMPTS = ["a red fox", "two cups of tea on a wooden table beside a window, soft morning light"]
RUNS = {
    "turbo": {"num_inference_steps": 8, "guidance_scale": 0.0},
    "base": {"num_inference_steps": 5, "guidance_scale": 4.0, "negative_prompt": ["blurry", "text"]},
    "base, normalised": {"num_inference_steps": 5, "guidance_scale": 4.0, "cfg_normalization": True},
    "base, truncated": {"num_inference_steps": 6, "guidance_scale": 4.0, "cfg_truncation": 0.3},
}


@pytest.mark.parametrize("name", RUNS)
def test_latents_equal_diffusers(name: str, ours: ZImagePipeline, theirs: PeerPipeline) -> None:
    noise = torch.randn(2, 16, 8, 6, generator=torch.Generator().manual_seed(4))
    options = {"height": 64, "width": 48, "latents": noise, "output_type": "latent", **RUNS[name]}
    expected = theirs(prompt=list(PROMPTS), **copy.deepcopy(options)).images  # it writes into its lists
    assert relative(ours(PROMPTS, **options).images, expected) <= 1e-4


def test_pictures_and_noise_equal_diffusers(ours: ZImagePipeline, theirs: PeerPipeline) -> None:
    """From the seed to 8-bit pixels."""
    options = {"height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 0.0}
    expected = theirs(prompt=PROMPTS[0], generator=torch.Generator().manual_seed(9), **options).images[0]
    image = ours(PROMPTS[0], generator=torch.Generator().manual_seed(9), **options).images[0]
    assert image.size == expected.size == (64, 64)
    a, b = (torch.tensor(list(i.tobytes())).int() for i in (image, expected))
    assert (a - b).abs().max() <= 1


def test_the_outputs_are_of_one_picture(ours: ZImagePipeline) -> None:
    """Latents, pixels of 0 to 1 and 8 bits; the parts are where they were."""
    options = {"height": 32, "width": 48, "num_inference_steps": 2}

    def made(kind: str) -> list:
        generator = torch.Generator().manual_seed(1)
        return ours(PROMPTS[0], generator=generator, output_type=kind, **options).images

    latent, pixels, (image,) = made("latent"), made("pt"), made("pil")
    decoded = ours.autoencoder.decode(latent / 0.3611 + 0.1159)
    torch.testing.assert_close(pixels, ((decoded + 1) / 2).clamp(0, 1))
    levels = torch.tensor(list(image.tobytes())).view(32, 48, 3).movedim(-1, 0)
    assert torch.equal((pixels[0] * 255).round(), levels) and 0 < pixels.mean() < 1
    assert ours.to("cpu") is ours and ours.device == torch.device("cpu")
    moved = copy.deepcopy(ours).to("meta")
    parts = (moved.transformer, moved.text_encoder, moved.autoencoder)
    assert all(p.is_meta for part in parts for p in part.parameters()) and moved.device.type == "meta"


@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_a_control_steers_as_in_diffusers(scale: float, ours: ZImagePipeline, theirs: PeerPipeline) -> None:
    """Version 1.0, with which its transformer also takes the hints where they belong."""
    blocks = dataclasses.replace(DIT, n_layers=1)
    network = randomise(ControlNet(ControlConfig(blocks, 16, "tokens")), 5)
    peer = diffusers_control_of(network, ours.transformer, theirs.transformer)
    pipe = PeerControlPipeline(**theirs.components, controlnet=peer)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(6))
    noise = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(7))
    options = {"height": 64, "width": 48, "latents": noise, "output_type": "latent"}
    options |= {"num_inference_steps": 4, "guidance_scale": scale}
    expected = pipe(
        prompt=PROMPTS[0],
        control_image=2 * picture - 1,  # it takes tensors as the autoencoder does
        controlnet_conditioning_scale=0.7,
        generator=torch.Generator().manual_seed(8),
        **copy.deepcopy(options),
    ).images
    encoder = ours.autoencoder
    latent = encoder.to_model(encoder.encode(2 * picture - 1).mode())
    steered = ours(PROMPTS[0], controls=[Control(network, latent, 0.7)], **options).images
    assert relative(steered, expected) <= 1e-4
    assert relative(ours(PROMPTS[0], **options).images, expected) > 1e-2


def test_batches_seeds_and_progress(ours: ZImagePipeline) -> None:
    seen = []
    generators = [torch.Generator().manual_seed(s) for s in (1, 2, 3, 4)]
    options = {"height": 32, "width": 48, "num_inference_steps": 2, "output_type": "latent"}
    batch = ours(
        PROMPTS,
        num_images_per_prompt=2,
        generator=generators,
        callback=lambda *a: seen.append(a[:2]),
        **options,
    ).images
    assert batch.shape == (4, 16, 4, 6) and seen == [(1, 2), (2, 2)]
    single = ours(PROMPTS[1], generator=torch.Generator().manual_seed(3), **options).images
    assert relative(batch[2:3], single) <= 1e-5


def test_regions_have_prompts_of_their_own(ours: ZImagePipeline) -> None:
    """One that covers the whole picture is as good as the prompt, and an empty one is none."""
    options = {"height": 32, "width": 48, "num_inference_steps": 2, "output_type": "latent"}

    def made(prompt: str, **more: object) -> torch.Tensor:
        return ours(prompt, generator=torch.Generator().manual_seed(3), **options, **more).images

    first, second = (made(prompt) for prompt in PROMPTS)
    half = torch.zeros(4, 6)
    half[:, 3:] = 1.0
    for weight, expected in ((torch.ones(4, 6), second), (torch.zeros(4, 6), first)):
        assert relative(made(PROMPTS[0], regions=[(PROMPTS[1], weight)]), expected) <= 1e-5
    mixed = made(PROMPTS[0], regions=[(PROMPTS[1], half)])
    assert min(relative(mixed, first), relative(mixed, second)) > 1e-2

    generators = [torch.Generator().manual_seed(3) for _ in range(4)]
    each = [(list(reversed(PROMPTS)), torch.ones(4, 6))]
    batch = ours(PROMPTS, num_images_per_prompt=2, generator=generators, regions=each, **options).images
    assert relative(batch, torch.cat((second, second, first, first))) <= 1e-5


def test_pixels_are_those_of_the_pictures(ours: ZImagePipeline) -> None:
    """output_type pt and pil, to the 8 bits of the latter; what is neither is named."""
    options = {"height": 32, "width": 48, "num_inference_steps": 1}
    made = {
        kind: ours(PROMPTS[0], generator=torch.Generator().manual_seed(3), output_type=kind, **options).images
        for kind in ("pt", "pil")
    }
    assert made["pt"].shape == (1, 3, 32, 48) and 0 <= float(made["pt"].min()) <= float(made["pt"].max()) <= 1
    pixels = torch.from_numpy(np.array(made["pil"][0])).permute(2, 0, 1)[None] / 255
    assert float((made["pt"] - pixels).abs().max()) <= 0.5 / 255 + 1e-6
    for kind in ("np", "tensor"):
        with pytest.raises(ValueError, match=f"output_type '{kind}' is not one of"):
            ours(PROMPTS[0], output_type=kind, **options)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_any_scale_above_zero_guides(ours: ZImagePipeline, scale: float) -> None:
    """One step: the guided latent is that of the positive and so many times the way from the negative."""
    options = {"height": 32, "width": 48, "num_inference_steps": 1, "output_type": "latent"}
    positive, negative, guided = (
        ours(prompt, generator=torch.Generator().manual_seed(3), **options, **more).images
        for prompt, more in (
            (PROMPTS[0], {}),
            (PROMPTS[1], {}),
            (PROMPTS[0], {"negative_prompt": PROMPTS[1], "guidance_scale": scale}),
        )
    )
    assert relative(guided, positive + scale * (positive - negative)) <= 1e-5


def test_generators_for_another_number_of_pictures_are_named(ours: ZImagePipeline) -> None:
    with pytest.raises(ValueError, match="3 generators for 2 pictures"):
        ours(PROMPTS, generator=[torch.Generator()] * 3, height=32, width=48)


def test_the_mask_of_a_region_may_have_the_shape_of_comfyui_s() -> None:
    weight = torch.rand(4, 6)
    assert torch.equal(region(("x", weight[None]))[1], region(("x", weight))[1])
    assert torch.equal(region(("x", weight))[1], weight[None])


@pytest.mark.parametrize(
    ("regions", "named"),
    [
        (("x", torch.ones(4, 4)), "holds str 'x', expected pairs"),
        ([("x", torch.ones(3, 4, 4))], r"shape \(3, 4, 4\), expected \[h, w\]"),
        ([("x", torch.ones(4))], r"shape \(4,\)"),
        ([("x", 300 * torch.ones(4, 4))], "from 300 to 300, expected 0 to 1"),
        ([("x", torch.full((2, 2), torch.nan))], "from nan"),
    ],
)
def test_regions_that_are_none_are_named(ours: ZImagePipeline, regions: object, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ours(PROMPTS[0], regions=regions, height=32, width=48, num_inference_steps=1)


def test_template_and_tokens_equal_the_reference(ours: ZImagePipeline, theirs: PeerPipeline) -> None:
    texts = json.loads((Path(__file__).parent / "prompts.json").read_text(encoding="utf-8"))
    for text in texts:
        reference = theirs.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        assert apply_template(text) == reference
        turns = [{"role": "system", "content": "Paint."}, {"role": "user", "content": text}]
        with_system = theirs.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert apply_template(text, "Paint.") == with_system
    tokens = tokenise(ours.tokenizer, texts, 40)
    expected = theirs.tokenizer(
        [apply_template(t) for t in texts],
        padding="max_length",
        max_length=40,
        truncation=True,
        return_tensors="pt",
    )
    longest = tokens.input_ids.shape[1]
    assert torch.equal(tokens.mask, expected.attention_mask[:, :longest].bool())
    assert torch.equal(tokens.input_ids[tokens.mask], expected.input_ids[expected.attention_mask.bool()])
    assert any(tokens.cut) and not all(tokens.cut)


def test_another_template(ours: ZImagePipeline) -> None:
    options = {"num_inference_steps": 1, "height": 32, "width": 48, "output_type": "latent"}
    latents = torch.zeros(1, 16, 4, 6)
    plain, other = (
        ours("a fox", latents=latents, template=t, **options).images for t in (TEMPLATE, "{prompt}!")
    )
    assert relative(other, plain) > 1e-3
    assert apply_template("a {fox}", template="{prompt}! {prompt}") == "a {fox}! a {fox}"
    with pytest.raises(ValueError, match="no {prompt}"):
        ours("a fox", template="a picture", **options)


def test_a_cut_prompt_is_said(ours: ZImagePipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING"):
        ours.encode_prompts(["word " * 300])
    assert "cut at 512 tokens" in caplog.text


def test_bad_requests_are_named(ours: ZImagePipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="50x48 pixels.*multiples of 8"):
        ours("a", width=50, height=48)
    with pytest.raises(ValueError, match="1 negative prompts for 2"):
        ours(PROMPTS, negative_prompt=["a"], guidance_scale=3.0)
    options = {"width": 48, "height": 32, "num_inference_steps": 1}
    with pytest.raises(ValueError, match=r"shape \(1, 16, 6, 4\), 48x32 pixels need \(1, 16, 4, 6\)"):
        ours("a", latents=torch.zeros(1, 16, 6, 4), **options)
    with pytest.raises(ValueError, match="3 generators for 2"):
        ours(PROMPTS, generator=[torch.Generator() for _ in range(3)], **options)
    with pytest.raises(ValueError, match="'np' is not one of pil, pt, latent"):
        ours("a", output_type="np", **options)
    with pytest.raises(ValueError, match="2 generators for 1"):
        ours("a", width=48, height=48, generator=[torch.Generator(), torch.Generator()])
    with pytest.raises(FileNotFoundError, match="text_encoder, vae, tokenizer .* from_files reads"):
        (tmp_path / "transformer").mkdir()
        ZImagePipeline.from_pretrained(tmp_path)
    other = random_s3dit(S3DiTConfig(dim=256, n_layers=1, n_refiner_layers=1, n_heads=2, cap_feat_dim=64), 0)
    with pytest.raises(ValueError, match="128 wide, the transformer takes 64"):
        ZImagePipeline(other, ours.text_encoder, ours.autoencoder, ours.tokenizer)


def test_autoencoder_has_the_flux_scaling(ours: ZImagePipeline, theirs: PeerPipeline) -> None:
    assert isinstance(ours.autoencoder, AutoencoderKL)
    config = theirs.vae.config
    assert (config.scaling_factor, config.shift_factor) == (
        ours.autoencoder.config.scaling_factor,
        ours.autoencoder.config.shift_factor,
    )
