"""One sampling run through the host's own machinery: its noise, previews, masks, cancel and memory."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from .finite import require_finite


def empty_latent(shape: tuple[int, int, int, int]) -> dict:
    """A LATENT of zeros where the host keeps latents between nodes."""
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


def sample_euler(model: Any, positive: Any, latent: dict, seed: int, sigmas: torch.Tensor) -> dict:
    """Without guidance. latent: the host's LATENT. Returns a new one, see `sample`."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, positive)  # at cfg 1 the negative is never run
    return sample(guider, comfy.samplers.sampler_object("euler"), latent, seed, sigmas)


def sample(guider: Any, sampler: Any, latent: dict, seed: int, sigmas: torch.Tensor) -> dict:
    """latent: the host's LATENT. Returns a new LATENT; the given one is left as it was.

    Raises ValueError when the result is not finite, which the host would turn into a black picture.
    """
    model = guider.model_patcher
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))

    def run() -> torch.Tensor:
        made = guider.sample(
            noise,
            samples,
            sampler,
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return made.to(samples)  # where the host keeps latents, and in its type

    made = run()
    require_finite(made, guider, noise, samples, run)
    return {**latent, "samples": made}
