"""Control networks on a MODEL: the latents of their pictures, and when they steer."""

from __future__ import annotations

from typing import Any

import comfy.latent_formats
import comfy.model_management as management
import comfy.utils
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....zimage_core.conditions.control import Control, ControlNet, control_latent, filled
from ....zimage_core.model.memo import StepMemo
from .s3dit import CONTROLS, HostAttention, HostS3DiT

SAME_SIGMA = 1e-5  # closer ones are equal: schedulers and percentages round differently


class HostControlNet(ControlNet):
    attention_class = HostAttention


def controlled(model: Any, patch: ControlPatch) -> Any:
    """A clone of a MODEL that `patch` steers, besides those that steer it already.

    Raises ValueError when the MODEL does not run on our S3-DiT, or the control was trained for another size.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, HostS3DiT):
        raise ValueError(
            f"This MODEL runs on {type(network).__name__}, not on this extension's Z-Image. Put Z-Image "
            "Accelerate between its loader and this node, or load the weights with the Z-Image loader."
        )
    patch.network.config.hint_layers(network.config)
    clone = model.clone()
    clone.set_model_patch(patch, CONTROLS)
    clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, CONTROLS)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, CONTROLS, _prepare)
    return clone


def _prepare(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Pictures are encoded before the transformer takes the memory."""
    guider = executor.class_obj
    for patch in guider.model_options["transformer_options"]["patches"][CONTROLS]:
        patch.prepare(guider.model_patcher, noise)
    return executor(noise, *args, **kwargs)


class ControlPatch:
    """One control on one MODEL, among the MODEL's patches: the host loads its weights with the MODEL.

    image and inpaint_image: the host's IMAGE [B, H, W, C]; mask: its MASK, 1 where the inpaint image is
    repainted. It steers from start_percent of the way from noise to picture on, and no longer at end_percent.
    """

    def __init__(
        self,
        patcher: Any,
        vae: Any,
        strength: float,
        start_percent: float,
        end_percent: float,
        image: Tensor | None,
        mask: Tensor | None,
        inpaint_image: Tensor | None,
    ) -> None:
        self.patcher, self.vae, self.strength = patcher, vae, strength
        self.percents = (start_percent, end_percent)
        self.sigmas = (1.0, 0.0)
        self.sigma = StepMemo()
        self.controls: dict[tuple[int, ...], Control] = {}  # by count, height and width of the latents
        self.picture, self.inpaint = (
            None if pixels is None else pixels[..., :3].movedim(-1, 1) for pixels in (image, inpaint_image)
        )
        self.mask = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])

    @property
    def network(self) -> HostControlNet:
        return self.patcher.model

    def models(self) -> list[Any]:
        """What the host loads together with the MODEL."""
        return [self.patcher]

    def prepare(self, model: Any, latents: Tensor) -> None:
        """Once per run, before it: model is its MODEL, latents as many and as large as it makes."""
        sampling = model.get_model_object("model_sampling")
        self.sigmas = tuple(sampling.percent_to_sigma(percent) for percent in self.percents)
        key = (latents.shape[0], *latents.shape[-2:])
        self.controls = {key: self.controls.get(key) or self._control(*key)}

    def at(self, x: Tensor, transformer_options: dict) -> Control | None:
        """What steers latents x [B, C, H, W], conditionings joined, at this step; None out of its turn."""
        start, end = self.sigmas
        if self.percents != (0.0, 1.0):
            step = transformer_options["sigmas"]
            sigma = self.sigma.once(step, (), lambda: float(step[0]))
            if not end < sigma - SAME_SIGMA <= start:
                return None
        key = (x.shape[0] // len(transformer_options.get("cond_or_uncond", (0,))), *x.shape[-2:])
        if key not in self.controls:  # a part of the picture, as the host's areas sample it
            loaded = management.loaded_models(only_currently_used=True)
            self.controls[key] = self._control(*key)
            management.load_models_gpu(loaded)
        return self.controls[key]

    def _control(self, count: int, height: int, width: int) -> Control:
        scale = self.vae.spacial_compression_encode()

        def sized(pixels: Tensor | None, method: str) -> Tensor | None:
            if pixels is None:
                return None
            return comfy.utils.common_upscale(pixels, width * scale, height * scale, method, "center")

        latent = control_latent(
            self._encode,
            self.network.config.channels,
            sized(self.picture, "area"),
            sized(self.inpaint, "area"),
            sized(self.mask, "bilinear"),
        )
        return Control(self.network, latent if len(latent) == 1 else filled(latent, count), self.strength)

    def _encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> scaled latents [B, 16, H / 8, W / 8]"""
        latent, needed = self.vae.encode(pixels.movedim(1, -1)), self.network.config.blocks.in_channels
        if latent.ndim != 4 or latent.shape[1] != needed:
            raise ValueError(
                f"this VAE gives latents of shape {tuple(latent.shape)}, the control reads {needed} "
                "channels: use the Flux.1 autoencoder (ae.safetensors)"
            )
        return comfy.latent_formats.Flux().process_in(latent)
