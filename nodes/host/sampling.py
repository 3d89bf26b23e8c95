"""One sampling run through the host's own machinery: its noise, previews, masks, cancel and memory."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch


def empty_latent(shape: tuple[int, int, int, int]) -> dict:
    """A LATENT of zeros where the host keeps latents between nodes."""
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


def sample_euler(model: Any, positive: Any, latent: dict, seed: int, sigmas: torch.Tensor) -> dict:
    """latent: the host's LATENT. Returns a new LATENT; the given one is left as it was.

    Raises ValueError when the result is not finite, which the host would turn into a black picture.
    """
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    samples = comfy.sample.sample_custom(
        model,
        noise,
        1.0,  # no guidance, so the negative below is never run
        comfy.samplers.sampler_object("euler"),
        sigmas,
        positive,
        positive,
        samples,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    if not torch.isfinite(samples).all():
        raise ValueError(
            "sampling gave values that are not finite (NaN or infinity). The weights hold such values or "
            "overflow in this precision: check the file, or load it with weight_dtype bf16 or fp32."
        )
    return {**latent, "samples": samples}
