"""The reference pipeline's guidance as the host's guider."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch

from ....zimage_core.sampling.guidance import Guidance


class ReferenceGuider(comfy.samplers.CFGGuider):
    """Positive and negative with `guidance`; where it is off the negative is not run."""

    def set_guidance(self, guidance: Guidance) -> None:
        self.guidance = guidance

    def predict_noise(
        self, x: torch.Tensor, timestep: torch.Tensor, model_options: dict = {}, seed: int | None = None
    ) -> torch.Tensor:
        scale = self.guidance.scale if self.guidance.active(float(timestep.max())) else 0.0
        if scale and self.guidance.normalisation:  # without it the host's own formula is the same
            model_options = {**model_options, "sampler_cfg_function": self._combine}
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds.get("negative"),
            self.conds.get("positive"),
            1.0 + scale,
            model_options=model_options,
            seed=seed,
        )

    def _combine(self, args: dict) -> torch.Tensor:
        # x - denoised is sigma times the velocity; the rule does not depend on that factor
        return self.guidance.combine(args["cond"], args["uncond"])


def reference_guider(model: Any, positive: list, negative: list, guidance: Guidance) -> ReferenceGuider:
    guider = ReferenceGuider(model)
    guider.set_conds(positive, negative)
    guider.set_guidance(guidance)
    return guider
