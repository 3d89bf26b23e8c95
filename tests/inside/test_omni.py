"""Omni weights in the host: reference pictures reach our MODEL.

Against our library's network stepped by hand and, where the host has them, its own omni classes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from pathlib import Path

import comfy.clip_vision
import pytest
import torch
from comfy.ldm.lumina.model import NextDiT
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor

from tests.core.random_models import random_inputs, random_s3dit, randomise, relative
from tests.host import matrix
from tests.host.inside import extension_module
from tests.host.native_network import native_network
from tests.host.packs import small_native
from tests.inside.sampling import SEED, from_file, noise_of, prompts, sampled, stepped
from zimage_core.conditions.references import References
from zimage_core.config import NanoConfig, S3DiTConfig
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions
from zimage_core.model.vision import VisionEncoder

CLOSE = 1e-5  # relative L2
VISION = NanoConfig().vision
PLAIN = matrix.SMALL_CONFIG
CONFIG = dataclasses.replace(PLAIN, siglip_feat_dim=VISION.hidden_size)
NETWORK = random_s3dit(CONFIG, SEED)
HAS_OMNI = "siglip_feat_dim" in inspect.signature(NextDiT.__init__).parameters
POSITIVE, NEGATIVE = prompts(CONFIG.cap_feat_dim, 21, 40)
CFG = 3.0

accelerated = extension_module("nodes.host.running.accelerate").accelerated
NANO = extension_module("nodes.host.built_in").NANO
references = extension_module("nodes.host.running.references")
generator = torch.Generator().manual_seed(SEED + 1)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


PICTURE = torch.rand(1, 96, 128, 3, generator=generator)
GIVEN = {  # for a network: two references of their own sizes
    "ref_latents": [noise(1, 16, *size) for size in ((8, 10), (6, 4))],
    "ref_contexts": [noise(1, length, CONFIG.cap_feat_dim) for length in (5, 34, 4)],
    "siglip_feats": [noise(1, *grid, VISION.hidden_size) for grid in ((3, 5), (2, 2))],
}


def output(features: Tensor) -> comfy.clip_vision.Output:
    seen = comfy.clip_vision.Output()
    seen["last_hidden_state"] = features.flatten(1, 2)
    seen["image_sizes"] = [(3, 16 * features.shape[1], 16 * features.shape[2])]
    return seen


def condition(caption: Tensor, given: dict) -> Prompt | References:
    """As the library's network takes it."""
    prompt = Prompt(Captions.whole(caption))
    return References.of(prompt, *given.values()) if given["ref_latents"] else prompt


def conditioning(prompt: list, scale) -> list:
    """As the host's TextEncodeZImageOmni writes it; its latents are those of a VAE, not scaled yet."""
    values = {
        "reference_latents": [scale(latent) for latent in GIVEN["ref_latents"]],
        "reference_latents_text_embeds": GIVEN["ref_contexts"],
        "clip_vision_outputs": [output(features) for features in GIVEN["siglip_feats"]],
    }
    return [[prompt[0][0], values]]


@pytest.fixture(scope="module")
def ours(scratch: Path):
    return lambda: from_file(scratch / "omni.safetensors", NETWORK.state_dict())


def native() -> ModelPatcher:
    """The host's own, with the published eps of q and k norms, which it leaves at the machine's."""
    patcher = small_native.patcher(NETWORK.state_dict())
    set_eps(patcher.model.diffusion_model, CONFIG.norm_eps)
    return patcher


def set_eps(network: torch.nn.Module, eps: float) -> None:
    for name, module in network.named_modules():
        if name.endswith(("q_norm", "k_norm")):
            module.eps = eps


def with_references(patcher: ModelPatcher, batch: int = 1) -> Tensor:
    """Two guided steps."""
    scale = patcher.model.process_latent_out
    captions = (conditioning(prompt, scale) for prompt in (POSITIVE, NEGATIVE))
    return sampled(patcher, *captions, cfg=CFG, noise=noise_of(batch=batch))


def without(patcher: ModelPatcher) -> Tensor:
    return sampled(patcher, POSITIVE, NEGATIVE, cfg=CFG)


@pytest.fixture(scope="module")
def latent(ours) -> Tensor:
    """What a run makes with two references."""
    return with_references(ours())


def test_a_run_is_the_librarys(ours, latent: Tensor) -> None:
    """A guided run with two references through the host's sampler, on hosts old and new."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        positive, negative = (
            NETWORK(x, sigma, condition=condition(prompt[0][0], GIVEN)) for prompt in (POSITIVE, NEGATIVE)
        )
        return negative + CFG * (positive - negative)

    assert relative(latent, stepped(ours(), velocity, 2, noise_of())) <= CLOSE
    assert relative(latent, without(ours())) > 1e-2, "the references change nothing: this proves nothing"


def test_a_batch_begins_with_what_one_is(ours, latent: Tensor) -> None:
    assert relative(with_references(ours(), batch=2)[:1], latent) <= CLOSE


PEER = S3DiTConfig(dim=1152, n_layers=2, n_heads=9, cap_feat_dim=CONFIG.cap_feat_dim, siglip_feat_dim=48)
TWO = GIVEN | {"siglip_feats": [noise(1, 3, 5, 48), noise(1, 7, 22, 48)]}
REFERENCES = {
    "two": TWO,
    "one": {name: parts[:n] for (name, parts), n in zip(TWO.items(), (1, 2, 1), strict=True)},
    "no siglip": TWO | {"siglip_feats": []},
    "no captions": TWO | {"ref_contexts": []},
    "none": {"ref_latents": []},
}


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
@pytest.mark.parametrize("case", REFERENCES)
def test_a_forward_is_the_hosts_own(case: str, size: tuple[int, int]) -> None:
    """Which takes no batch with references: one and two of them, odd siglip grids, missing parts."""
    if not HAS_OMNI:
        return  # this host has no omni model
    model, peer = random_s3dit(PEER, SEED), native_network(PEER, dtype=torch.float32)
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    assert not missing and not unexpected
    set_eps(peer, PEER.norm_eps)
    x, sigma, caption = random_inputs(PEER, SEED, size=size, length=40)
    theirs = peer(x, sigma, caption, caption.shape[1], **REFERENCES[case])
    assert relative(model(x, sigma, condition=condition(caption, REFERENCES[case])), theirs) <= CLOSE


def test_a_run_is_the_hosts_own(latent: Tensor) -> None:
    """Also by Accelerate on the host's network."""
    if not HAS_OMNI:
        return  # this host has no omni model
    assert relative(latent, with_references(native())) <= CLOSE
    assert relative(with_references(accelerated(native())[0]), latent) <= CLOSE


def test_what_the_references_need_is_computed_once(ours) -> None:
    """For each of two prompts; the noisy latent for each step of two as well."""
    patcher, seen = ours(), Counter()
    network = patcher.model.diffusion_model
    for name in ("siglip_refiner", "context_refiner", "noise_refiner"):
        getattr(network, name)[0].register_forward_hook(lambda *_, name=name: seen.update([name]))
    with_references(patcher)
    assert seen == {"siglip_refiner": 2, "context_refiner": 2, "noise_refiner": 4}


def test_positive_and_negative_share_a_batch_for_patches_that_compare_them(ours, latent: Tensor) -> None:
    """References included."""
    patcher, batches = ours(), set()
    patcher.set_model_attn1_output_patch(lambda out, extra: batches.add(len(extra["cond_or_uncond"])) or out)
    assert relative(with_references(patcher), latent) <= CLOSE
    assert batches == {2}


def test_patches_see_the_picture_alone(ours, latent: Tensor) -> None:
    """8 x 12 latent cells are 24 tokens, padded to 32; the timestep is that of the noisy tokens."""
    patcher, seen = ours(), set()

    def look(kwargs: dict) -> dict:
        shapes = [kwargs[name].shape[1] for name in ("img", "img_input", "pe")]
        seen.add((*shapes, kwargs["vec"].shape[0]))
        kwargs["img"] *= 1.5
        return {"img": kwargs["img"]}

    for kind in ("noise_refiner", "double_block"):
        patcher.set_model_patch(look, kind)
    assert relative(with_references(patcher), latent) > 1e-2
    assert seen == {(32, 32, 32, 1)}


def test_blocks_replaced_by_themselves(ours, latent: Tensor) -> None:
    patcher = ours()
    for kind in ("double_block", "single_block"):
        patcher.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", kind, 0)

    def renewed(args: dict, extra: dict) -> dict:
        return extra["original_block"]({**args, "vec": args["vec"].clone()})

    patcher.set_model_patch_replace(renewed, "dit", "double_block", 1)
    assert relative(with_references(patcher), latent) <= 1e-6


def test_other_weights_say_that_they_take_no_references(scratch: Path, caplog) -> None:
    """A message, and the run that the prompt alone gives."""
    state = random_s3dit(PLAIN, SEED).state_dict()
    made, expected = (
        run(from_file(scratch / "plain.safetensors", state)) for run in (with_references, without)
    )
    assert torch.equal(made, expected)
    assert "no omni keys" in caplog.text


@pytest.fixture(scope="module")
def vision(scratch: Path) -> tuple[VisionEncoder, object]:
    """Our encoder, and a file of it as the host's CLIP_VISION."""
    encoder, path = randomise(VisionEncoder(VISION), SEED), scratch / "vision.safetensors"
    save_file(encoder.state_dict(), path)
    return encoder, extension_module("nodes.host.loading.vision").load_vision(path)


@pytest.fixture(scope="module")
def clip():
    return extension_module("nodes.host.loading.clip").load_clip(NANO / "text_encoder.safetensors")


@pytest.fixture(scope="module")
def vae():
    return extension_module("nodes.host.loading.vae").load_vae(NANO / "autoencoder.safetensors")


def test_a_picture_is_seen_as_our_encoder_sees_it(vision) -> None:
    """By the host's SigLIP 2 where it has one, whose norms have another epsilon; else by ours."""
    encoder, loaded = vision
    the_hosts = isinstance(loaded, comfy.clip_vision.ClipVisionModel)
    assert the_hosts == HAS_OMNI
    seen = references.vision_grid(loaded.encode_image(PICTURE))
    assert relative(seen, encoder.features(PICTURE)) <= (2e-3 if the_hosts else 1e-6)


def test_pictures_become_a_conditioning_in_their_sizes(vision, clip, vae) -> None:
    """300 x 200 pixels shrink to the area of 128 x 128."""
    pictures = [PICTURE, torch.rand(1, 200, 300, 3, generator=generator)]
    made = references.omni_conditioning(clip, "a {red} apple", vae, pictures, vision[1])
    assert [list(t.shape[-2:]) for t in made[0][1]["reference_latents"]] == [[12, 16], [12, 18]]


def test_without_pictures_it_is_the_prompt(clip, vae) -> None:
    made = references.omni_conditioning(clip, "an apple", vae, [])
    plain = clip.encode_from_tokens_scheduled(clip.tokenize("an apple"))
    assert torch.equal(made[0][0], plain[0][0])


def test_a_conditioning_is_that_of_the_hosts_node(vision, clip, vae) -> None:
    if not HAS_OMNI:
        return  # this host has no such node
    from comfy_extras.nodes_zimage import TextEncodeZImageOmni

    ours = references.omni_conditioning(clip, "a red apple", vae, [PICTURE], vision[1])[0]
    theirs = TextEncodeZImageOmni.execute(
        clip, "a red apple", image_encoder=vision[1], auto_resize_images=False, vae=vae, image1=PICTURE
    ).result[0][0]
    pairs = [(ours[0], theirs[0])]
    for name in ("reference_latents", "reference_latents_text_embeds"):
        pairs += zip(ours[1][name], theirs[1][name], strict=True)
    pairs.append([c[1]["clip_vision_outputs"][0]["last_hidden_state"] for c in (ours, theirs)])
    assert all(relative(a, b) <= 1e-6 for a, b in pairs)
