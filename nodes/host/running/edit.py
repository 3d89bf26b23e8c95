"""A picture and a plan -> the edited picture, through the host's text encoder, VAE and sampling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.samplers
import torch
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from torch import Tensor

from ....zimage_core.config import LATENT_DOWNSCALE, SIZE_MULTIPLE
from ....zimage_core.sampling.edit_plan import Plan
from ....zimage_core.sampling.guidance import Guidance
from ....zimage_core.sampling.inpaint import composite, feathered, fitted_mask, grown, latent_mask, padded
from ....zimage_core.sampling.schedule import strength_sigmas
from ..writing.encodings import encode, tokens_of
from .accelerate import family_settings
from .flowedit import FlowEditGuider, FlowEditSampler
from .guider import reference_guider
from .references import omni_conditioning
from .s3dit import HostS3DiT
from .sampling import sample

REFERENCES = ("reference_latents", "reference_latents_text_embeds", "clip_vision_outputs")


@dataclass(frozen=True)
class Parts:
    """The host's MODEL, CLIP and VAE; for omni weights also more pictures [B, H, W, 3] and a CLIP_VISION."""

    model: Any
    clip: Any
    vae: Any
    references: list[Tensor]
    vision: Any


@dataclass(frozen=True)
class Sampling:
    """What a run needs beside the plan. guidance_scale: 0 is off; ComfyUI's cfg = guidance_scale + 1."""

    seed: int
    steps: int
    shift: float
    guidance_scale: float
    source_guidance_scale: float
    negative: list | None
    n_min: int
    n_avg: int


def has_omni_keys(model: Any) -> bool:
    """Whether a MODEL can look at pictures. Raises ValueError when it is not Z-Image."""
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, HostS3DiT) and not family_settings(model).get("z_image_modulation"):
        kind = type(model.model).__name__
        raise ValueError(f"This MODEL is {kind}, not Z-Image: connect a Z-Image MODEL.")
    return getattr(network, "siglip_embedder", None) is not None


def soft_mask(image: Tensor, mask: Tensor | None, grow: int, feather: int) -> Tensor | None:
    """[B, H, W] like the image, with soft edges; None when there is no mask or nothing is painted."""
    if mask is None or not mask.any():
        return None
    return feathered(grown(fitted_mask(mask, image.shape[1:3], len(image)), grow), feather)


def edit(parts: Parts, image: Tensor, mask: Tensor | None, plan: Plan, run: Sampling) -> tuple[dict, Tensor]:
    """(LATENT, IMAGE of the given size). image: [B, H, W, 3]; mask: from soft_mask."""
    if plan.route == "omni" and len(image) > 1:  # each looks at its own picture
        return _one_by_one(parts, image, mask, plan, run)
    latent = {"samples": parts.vae.encode(padded(image, SIZE_MULTIPLE))}
    if plan.idle:
        return latent, image
    if mask is not None:
        latent["noise_mask"] = latent_mask(padded(mask, SIZE_MULTIPLE), LATENT_DOWNSCALE)
    if plan.route == "flowedit":
        guider, sampler = _flowedit(parts, plan, run)
    else:
        guider, sampler = _plain(parts, image, mask is not None, plan, run)
    latent = sample(guider, sampler, latent, run.seed, strength_sigmas(run.steps, run.shift, plan.strength))
    height, width = image.shape[1:3]
    result = parts.vae.decode(latent["samples"])[:, :height, :width]
    return latent, result if mask is None else composite(image, result, mask)


def _one_by_one(
    parts: Parts, image: Tensor, mask: Tensor | None, plan: Plan, run: Sampling
) -> tuple[dict, Tensor]:
    masks = [None] * len(image) if mask is None else mask.split(1)
    made = [
        edit(parts, one, its_mask, plan, replace(run, seed=run.seed + i))
        for i, (one, its_mask) in enumerate(zip(image.split(1), masks, strict=True))
    ]
    latents, pictures = zip(*made, strict=True)
    return {name: torch.cat([one[name] for one in latents]) for name in latents[0]}, torch.cat(pictures)


def _flowedit(parts: Parts, plan: Plan, run: Sampling) -> tuple[Any, Any]:
    guided = run.guidance_scale > 0
    negative = (run.negative or encoded(parts.clip, "")) if guided else None
    source, target = (encoded(parts.clip, text) for text in (plan.prompts.source, plan.prompts.target))
    guider = FlowEditGuider(parts.model, source, target, negative)
    if guided:
        guider.set_cfgs(1 + run.source_guidance_scale, 1 + run.guidance_scale)
    return guider, FlowEditSampler(run.n_min, run.n_avg)


def _plain(parts: Parts, image: Tensor, masked: bool, plan: Plan, run: Sampling) -> tuple[Any, Any]:
    text, seen = plan.prompts.target, {}
    if plan.route == "omni":
        pictures = [image, *parts.references]
        target = omni_conditioning(parts.clip, text, parts.vae, pictures, parts.vision)
        seen = {name: value for name, value in target[0][1].items() if name in REFERENCES}
    else:
        target = encoded(parts.clip, text)
    negative = target  # without guidance it is never run
    if run.guidance_scale > 0:  # it sees the same pictures
        negative = run.negative or encoded(parts.clip, "")
        negative = [[caption, {**settings, **seen}] for caption, settings in negative]
    model = differential(parts.model) if masked else parts.model
    guider = reference_guider(model, target, negative, Guidance(run.guidance_scale))
    return guider, comfy.samplers.sampler_object("euler")


def encoded(clip: Any, text: str) -> list:
    """The CONDITIONING of a text; kept, so that another seed or mask does not load the text encoder again."""
    return encode(clip, tokens_of(clip, text))


def differential(model: Any) -> Any:
    """Grey values of the mask are how long a place is worked on, by the host's own rule."""
    if "denoise_mask_function" in model.model_options:  # the user's own
        return model
    return DifferentialDiffusion.execute(model).result[0]
