"""FlowEdit under the host's sampling: its noise grid, previews, cancel, patches and memory."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ....zimage_core.model.sequence import Captions
from ....zimage_core.sampling.flowedit import flow_edit
from .s3dit import HostS3DiT

PLAIN = {"pooled_output", "attention_mask"}  # what an encoded prompt has that nothing was done to


class FlowEditGuider(comfy.samplers.CFGGuider):
    """Predictions under the source prompt and the target prompt.

    Both come from one call of the model where the two captions are equally long for it.
    """

    def __init__(self, model: Any, source: list, target: list, negative: list | None = None) -> None:
        super().__init__(model)
        conds = {
            "source": source,
            "target": target,
            "negative": negative,
            "pair": _pair(model, source, target),
        }
        self.inner_set_conds({name: cond for name, cond in conds.items() if cond})
        self.cfgs = (1.0, 1.0)

    def set_cfgs(self, source: float, target: float) -> None:
        """The host's cfg of each; 1 is off."""
        self.cfgs = (source, target)

    def predict_both(self, source: Tensor, target: Tensor, sigma: Tensor, options: dict) -> list[Tensor]:
        """Denoised latents [B, C, H, W] of two noisy ones."""
        if "pair" not in self.conds:
            return [
                self.predict(name, x, sigma, options, cfg)
                for name, x, cfg in zip(("source", "target"), (source, target), self.cfgs, strict=True)
            ]
        # the host repeats a conditioning of two rows over the batch: source and target take turns
        x = torch.stack((source, target), dim=1).flatten(0, 1)
        clean, other = self._denoised("pair", x, sigma, options, any(cfg != 1 for cfg in self.cfgs))
        return [
            self._guided("pair", clean[i::2], other[i::2], x[i::2], sigma, options, cfg)
            for i, cfg in enumerate(self.cfgs)
        ]

    def predict(self, name: str, x: Tensor, sigma: Tensor, options: dict, cfg: float) -> Tensor:
        clean, other = self._denoised(name, x, sigma, options, cfg != 1)
        return self._guided(name, clean, other, x, sigma, options, cfg)

    def _denoised(self, name: str, x: Tensor, sigma: Tensor, options: dict, guided: bool) -> list[Tensor]:
        comfy.model_management.throw_exception_if_processing_interrupted()
        conds = [self.conds[name], self.conds.get("negative") if guided else None]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, sigma.expand(len(x)), options)

    def _guided(
        self, name: str, clean: Tensor, other: Tensor, x: Tensor, sigma: Tensor, options: dict, cfg: float
    ) -> Tensor:
        uncond = self.conds.get("negative") if cfg != 1 else None
        return comfy.samplers.cfg_function(
            self.inner_model, clean, other, cfg, x, sigma.expand(len(x)), options, self.conds[name], uncond
        )


class FlowEditSampler(comfy.samplers.Sampler):
    """Moves a clean latent; run by a FlowEditGuider."""

    def __init__(self, n_min: int, n_avg: int) -> None:
        self.n_min, self.n_avg = n_min, n_avg

    def sample(
        self,
        guider: FlowEditGuider,
        sigmas: Tensor,
        extra_args: dict,
        callback: Any,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        options = extra_args["model_options"]
        generator = torch.Generator().manual_seed(extra_args["seed"])

        def draw() -> Tensor:  # on the CPU, as the host's own noise, so that a seed is the same anywhere
            return torch.randn(noise.shape, generator=generator).to(noise)

        def velocities(source: Tensor | None, target: Tensor, sigma: float) -> tuple[Tensor | None, Tensor]:
            at = sigmas.new_full((1,), sigma)
            if source is None:
                return None, (target - guider.predict("target", target, at, options, guider.cfgs[1])) / sigma
            clean = guider.predict_both(source, target, at, options)
            return (source - clean[0]) / sigma, (target - clean[1]) / sigma

        def on_step(step: int, latent: Tensor) -> None:
            if callback is not None:
                callback(step, latent, latent, len(sigmas) - 1)

        return flow_edit(
            latent_image,
            sigmas,
            velocities,
            draw,
            n_min=self.n_min,
            n_avg=self.n_avg,
            mask=denoise_mask,
            on_step=on_step,
        )


def _pair(model: Any, source: list, target: list) -> list | None:
    """One conditioning of two rows, or None where the model could not take them together."""
    if len(source) != 1 or len(target) != 1:  # prompts with a schedule
        return None
    (first, first_settings), (second, second_settings) = source[0], target[0]
    if {*first_settings, *second_settings} - PLAIN or len(first) != 1 or len(second) != 1:
        return None
    rows = (source[0], target[0])
    pair = [Captions.masked(caption, settings.get("attention_mask")) for caption, settings in rows]
    network, settings = model.get_model_object("diffusion_model"), {"pooled_output": None}
    if isinstance(network, HostS3DiT):  # knows each row's length; pads cost nothing up to the same multiple
        multiple = network.config.pad_multiple
        if len({-(-caption.shape[1] // multiple) for caption in (first, second)}) != 1:
            return None
        settings["attention_mask"] = Captions.joined(pair).mask
    elif first.shape != second.shape or not all(captions.mask.all() for captions in pair):
        return None
    return [[Captions.joined(pair).features, settings]]
