"""Runs inside a ComfyUI's Python: our MODEL with omni weights, references in its conditioning, against our
library's network stepped by hand and, where the host has them, its own omni classes.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/omni_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import logging
import os
import sys
from collections import Counter
from pathlib import Path

HOST, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:3])

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from tests.core.random_models import random_inputs, random_s3dit, randomise, relative  # noqa: E402
from tests.host import matrix  # noqa: E402
from tests.host.inside import enter, extension_module  # noqa: E402
from tests.host.native_network import native_network  # noqa: E402
from zimage_core.conditions.references import References  # noqa: E402
from zimage_core.config import NanoConfig, S3DiTConfig  # noqa: E402
from zimage_core.model.s3dit import Prompt  # noqa: E402
from zimage_core.model.sequence import Captions  # noqa: E402
from zimage_core.model.vision import VisionEncoder  # noqa: E402

enter(HOST)
import comfy.clip_vision  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
from comfy.ldm.lumina.model import NextDiT  # noqa: E402

sys.path.append(str(Path(__file__).resolve().parent))
import small_native  # noqa: E402

SEED = int(os.environ.get("ZIMAGE_SEED", "1234"))
VISION = NanoConfig().vision
PLAIN = matrix.SMALL_CONFIG
CONFIG = dataclasses.replace(PLAIN, siglip_feat_dim=VISION.hidden_size)
HAS_OMNI = "siglip_feat_dim" in inspect.signature(NextDiT.__init__).parameters
SIZE, STEPS, CFG = (8, 12), 2, 3.0

generator = torch.Generator().manual_seed(SEED)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def arguments(sizes=((8, 10), (6, 4)), lengths=(5, 34, 4), grids=((3, 5), (2, 2))) -> dict[str, list]:
    """For a network: two references of their own sizes."""
    return {
        "ref_latents": [noise(1, 16, *size) for size in sizes],
        "ref_contexts": [noise(1, length, CONFIG.cap_feat_dim) for length in lengths],
        "siglip_feats": [noise(1, *grid, VISION.hidden_size) for grid in grids],
    }


def output(features: torch.Tensor) -> comfy.clip_vision.Output:
    found = comfy.clip_vision.Output()
    found["last_hidden_state"] = features.flatten(1, 2)
    found["image_sizes"] = [(3, 16 * features.shape[1], 16 * features.shape[2])]
    return found


def condition(caption: torch.Tensor, given: dict) -> Prompt | References:
    """As the library's network takes it."""
    prompt = Prompt(Captions.whole(caption))
    return References.of(prompt, *given.values()) if given["ref_latents"] else prompt


def conditioning(caption: torch.Tensor, given: dict | None, scale) -> list:
    """As the host's TextEncodeZImageOmni writes it; its latents are those of a VAE, not scaled yet."""
    if given is None:
        return [[caption, {}]]
    values = {
        "reference_latents": [scale(latent) for latent in given["ref_latents"]],
        "reference_latents_text_embeds": given["ref_contexts"],
        "clip_vision_outputs": [output(features) for features in given["siglip_feats"]],
    }
    return [[caption, values]]


GIVEN = arguments()
POSITIVE, NEGATIVE = noise(1, 21, CONFIG.cap_feat_dim), noise(1, 40, CONFIG.cap_feat_dim)


def ours(config=CONFIG):
    path = SCRATCH / "omni.safetensors"
    save_file(random_s3dit(config, SEED).state_dict(), path)
    return extension_module("nodes.host.loading.model").load_patcher(path, "fp32")


def native():
    model = small_native.patcher(random_s3dit(CONFIG, SEED).state_dict())
    for name, module in model.model.diffusion_model.named_modules():
        if name.endswith(("q_norm", "k_norm")):
            module.eps = CONFIG.norm_eps
    return model


def sampled(patcher, given: dict | None = GIVEN, batch: int = 1, negative=NEGATIVE) -> torch.Tensor:
    latent = torch.zeros(batch, 16, *SIZE)
    prompts = (
        conditioning(caption, given, patcher.model.process_latent_out) for caption in (POSITIVE, negative)
    )
    inputs = (STEPS, CFG, "euler", "simple", *prompts, latent)
    start = comfy.sample.prepare_noise(latent, SEED)
    return comfy.sample.sample(patcher, start, *inputs, disable_pbar=True, seed=SEED)


def by_hand(patcher) -> torch.Tensor:
    """The same run with the library's network, which is compared with others elsewhere."""
    network = random_s3dit(CONFIG, SEED)
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "simple", STEPS)
    x = comfy.sample.prepare_noise(torch.zeros(1, 16, *SIZE), SEED)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        positive, negative = (
            network(x, sigma[None], condition=condition(caption, GIVEN)) for caption in (POSITIVE, NEGATIVE)
        )
        x = x + (following - sigma) * (negative + CFG * (positive - negative))
    return patcher.model.process_latent_out(x)


def networks() -> dict[str, float]:
    """One forward against the host's, which takes no batch with references: one and two of them, odd siglip
    grids, missing parts.
    """
    config = S3DiTConfig(
        dim=1152, n_layers=2, n_heads=9, cap_feat_dim=CONFIG.cap_feat_dim, siglip_feat_dim=48
    )
    model = random_s3dit(config, SEED)
    peer = native_network(config, dtype=torch.float32)
    missing, unexpected = peer.load_state_dict(model.state_dict(), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    for name, module in peer.named_modules():
        if name.endswith(("q_norm", "k_norm")):
            module.eps = config.norm_eps

    def features(*shape: int) -> torch.Tensor:
        return noise(1, *shape, 48)

    two = GIVEN | {"siglip_feats": [features(3, 5), features(7, 22)]}
    cases = {
        "two": two,
        "one": {k: v[:n] for (k, v), n in zip(two.items(), (1, 2, 1), strict=True)},
        "no siglip": two | {"siglip_feats": []},
        "no captions": two | {"ref_contexts": []},
        "none": {"ref_latents": []},
    }
    found = {}
    for name, given in cases.items():
        for size in ((8, 12), (7, 9)):
            x, sigma, caption = random_inputs(config, SEED, size=size, length=40)
            theirs = peer(x, sigma, caption, caption.shape[1], **given)
            made = model(x, sigma, condition=condition(caption, given))
            found[f"{name}, {size[0]}x{size[1]}"] = relative(made, theirs)
    return found


def counts() -> dict[str, int]:
    """A guided run: what depends on references and prompt only is computed once for each prompt."""
    patcher, seen = ours(), Counter()
    network = patcher.model.diffusion_model
    for name in ("siglip_refiner", "context_refiner", "noise_refiner"):
        getattr(network, name)[0].register_forward_hook(lambda *_, name=name: seen.update([name]))
    sampled(patcher)
    return dict(seen)


def joined() -> dict:
    """A patch that compares positive and negative gets both in one batch, references included."""
    apart, seen = sampled(ours()), []
    patcher = ours()
    patcher.set_model_attn1_output_patch(lambda out, extra: seen.append(extra["cond_or_uncond"]) or out)
    return {"distance": relative(sampled(patcher), apart), "batches": sorted(map(len, seen))}


def patches() -> dict:
    """Patches of both kinds see the picture's tokens: as many as without references."""
    patcher, seen = ours(), []

    def look(kwargs: dict) -> dict:
        shapes = [kwargs[name].shape[1] for name in ("img", "img_input", "pe")]
        seen.append((*shapes, kwargs["vec"].shape[0]))
        kwargs["img"] *= 1.5
        return {"img": kwargs["img"]}

    for kind in ("noise_refiner", "double_block"):
        patcher.set_model_patch(look, kind)
    changed = sampled(patcher)
    same = ours()
    for kind in ("double_block", "single_block"):
        same.set_model_patch_replace(lambda args, extra: extra["original_block"](args), "dit", kind, 0)

    def renewed(args: dict, extra: dict) -> dict:
        return extra["original_block"]({**args, "vec": args["vec"].clone()})

    same.set_model_patch_replace(renewed, "dit", "double_block", 1)
    plain = sampled(ours())
    return {
        "seen": sorted(set(seen)),
        "effect": relative(changed, plain),
        "replaced by itself": relative(sampled(same), plain),
    }


def ignored() -> dict:
    """Weights without siglip keys: a message, and the run that the prompt alone gives."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    with_references, without = sampled(ours(PLAIN)), sampled(ours(PLAIN), None)
    logging.getLogger().removeHandler(handler)
    return {"equal": torch.equal(with_references, without), "said": any("no omni keys" in t for t in lines)}


def vision() -> dict:
    """A file of our encoder as the host's CLIP_VISION; pictures, a prompt and the VAE to a conditioning."""
    encoder = randomise(VisionEncoder(VISION), SEED)
    path = SCRATCH / "vision.safetensors"
    save_file(encoder.state_dict(), path)
    loaded = extension_module("nodes.host.loading.vision").load_vision(path)
    picture = torch.rand(1, 96, 128, 3, generator=generator)
    found = extension_module("nodes.host.running.references").vision_grid(loaded.encode_image(picture))
    answer = {
        "features": relative(found, encoder.features(picture)),
        "host's own": isinstance(loaded, comfy.clip_vision.ClipVisionModel),
    }
    nano = extension_module("nodes.host.built_in").NANO
    clip = extension_module("nodes.host.loading.clip").load_clip(nano / "text_encoder.safetensors")
    vae = extension_module("nodes.host.loading.vae").load_vae(nano / "autoencoder.safetensors")
    make = extension_module("nodes.host.running.references").omni_conditioning
    pictures = [picture, torch.rand(1, 200, 300, 3, generator=generator)]
    made = make(clip, "a {red} apple", vae, pictures, loaded)
    answer["sizes"] = [list(t.shape[-2:]) for t in made[0][1]["reference_latents"]]
    answer["no pictures"] = relative(
        make(clip, "an apple", vae, [])[0][0],
        clip.encode_from_tokens_scheduled(clip.tokenize("an apple"))[0][0],
    )
    if HAS_OMNI:
        from comfy_extras.nodes_zimage import TextEncodeZImageOmni

        one = make(clip, "a red apple", vae, [picture], loaded)[0]
        theirs = TextEncodeZImageOmni.execute(
            clip, "a red apple", image_encoder=loaded, auto_resize_images=False, vae=vae, image1=picture
        ).result[0][0]
        parts = [(one[0], theirs[0])]
        for name in ("reference_latents", "reference_latents_text_embeds"):
            assert len(one[1][name]) == len(theirs[1][name])
            parts += zip(one[1][name], theirs[1][name], strict=True)
        states = [c[1]["clip_vision_outputs"][0]["last_hidden_state"] for c in (one, theirs)]
        answer["host's node"] = max(relative(a, b) for a, b in [*parts, states])
    return answer


with torch.no_grad():
    mine = sampled(ours())
    answer = {
        "by hand": relative(mine, by_hand(ours())),
        "effect": relative(mine, sampled(ours(), None)),
        "batch": relative(sampled(ours(), batch=2)[:1], mine),
        "counts": counts(),
        "joined": joined(),
        "patches": patches(),
        "ignored": ignored(),
        "vision": vision(),
    }
    if HAS_OMNI:
        answer["networks"] = networks()
        answer["native"] = relative(mine, sampled(native()))
        fast, _ = extension_module("nodes.host.running.accelerate").accelerated(native())
        answer["accelerated"] = relative(sampled(fast), mine)
sys.stdout.write(json.dumps(answer) + "\n")
