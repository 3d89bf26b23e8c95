"""What is looked at before each run of a MODEL of ours, whichever sampler runs it."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....zimage_core.config import LATENT_DOWNSCALE, S3DiTConfig
from ....zimage_core.sampling.sizes import size_note
from .lora_fit import lora_notes

KEY = "zimage_before_run"
PURE_NOISE = 0.999  # of the largest sigma: hardly anything of a given picture is left


def look_before_runs(model: Any) -> None:
    """From now on a run of this MODEL begins with what is to be said of its size and its LoRAs.

    One at a size of which the model makes nothing ends in an error.
    """
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, _looked_at)


def _looked_at(executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args, **kwargs):
    if len(sigmas) <= 1:
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)
    from ..page.run_notes import tell, together  # here: models are also loaded where there is no page

    patcher = executor.class_obj.model_patcher
    with together():
        tell([*_size_notes(patcher, latent, float(sigmas[0])), *lora_notes(patcher)])
        return executor(noise, latent, sampler, sigmas, *args, **kwargs)


def _size_notes(patcher: Any, latent: Tensor, sigma: float) -> list[str]:
    config = getattr(patcher.get_model_object("diffusion_model"), "config", None)
    if not isinstance(config, S3DiTConfig):  # another extension replaced the network
        return []
    height, width = (LATENT_DOWNSCALE * side for side in latent.shape[-2:])
    noisiest = float(patcher.get_model_object("model_sampling").sigma_max)
    note = size_note(config, width, height, fresh=sigma >= PURE_NOISE * noisiest)
    return [note] if note else []
