"""Control networks on a MODEL: the latents of their pictures, and when they steer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import comfy.latent_formats
import comfy.model_management as management
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....zimage_core.conditions.control import Control, ControlNet, control_latent, filled
from ....zimage_core.model.memo import StepMemo
from .levels import sigma_now, with_levels
from .one_pass import CONTROLS
from .parts import Part, report_lost
from .s3dit import HostAttention, HostS3DiT

SAME_SIGMA = 1e-5  # closer ones are equal: schedulers and percentages round differently
LOCATED = 5  # channels of a picture with each pixel's row and column


class HostControlNet(ControlNet):
    attention_class = HostAttention


def controlled(model: Any, patch: ZImageControlPatch) -> Any:
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
    with_levels(clone)
    return clone


def _prepare(executor: Any, noise: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Pictures are encoded before the transformer takes the memory."""
    guider = executor.class_obj
    for patch in guider.model_options["transformer_options"]["patches"][CONTROLS]:
        patch.prepare(guider.model_patcher, noise)
    return executor(noise, *args, **kwargs)


class ZImageControlPatch:
    """One control on one MODEL, among the MODEL's patches: the host loads its weights with the MODEL.

    model_patch: the network in the host's patcher. image and inpaint_image: the host's IMAGE [B, H, W, C],
    one of them at least. mask: its MASK, 1 where the inpaint image is repainted.

    Name, arguments and attributes are those of the host's own patch. By them Ultimate SD Upscale finds it,
    puts a tile's part of `image` in place of it and calls __init__ again. So `image` has two channels more,
    the row and the column of each pixel: they tell where to cut mask and inpaint image.
    """

    percents = (0.0, 1.0)  # the shares of the way from noise to picture between which it steers
    sigmas = (1.0, 0.0)
    encoded_image, encoded_image_size = torch.empty(1, 16, 0, 0), (0, 0)  # the host's patch has them

    def __init__(
        self,
        model_patch: Any,
        vae: Any,
        image: Tensor | None,
        strength: float,
        inpaint_image: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        if image is not None and image.shape[-1] == LOCATED:  # cut out of this one's
            self.image = image
            return
        self.model_patch, self.vae, self.strength = model_patch, vae, strength
        self.inpaint_image, self.mask = inpaint_image, mask
        self.picture, self.inpaint = (
            None if pixels is None else pixels[..., :3].movedim(-1, 1) for pixels in (image, inpaint_image)
        )
        self.repaint = None if mask is None else mask.reshape(-1, 1, *mask.shape[-2:])
        self.image = located(inpaint_image if image is None else image)
        self.size = self.image.shape[:3]
        self.sigma = StepMemo()
        self.whole: tuple[int, ...] = ()  # shape of the latents of a run
        self.encoded: Tensor | None = None  # the image that the controls are of
        self.controls: dict[tuple, Control] = {}  # by count, height and width of the latents, and their parts

    def __deepcopy__(self, memo: dict) -> ZImageControlPatch:
        """Some hosts copy a MODEL's patches with each clone of it: weights and pictures are shared."""
        copied = copy.copy(self)
        copied.controls = dict(self.controls)
        return copied

    @property
    def network(self) -> HostControlNet:
        return self.model_patch.model

    def models(self) -> list[Any]:
        """What the host loads together with the MODEL."""
        return [self.model_patch]

    def prepare(self, model: Any, latents: Tensor) -> None:
        """Once per run, before it: model is its MODEL, latents as many and as large as it makes."""
        sampling = model.get_model_object("model_sampling")
        self.sigmas = tuple(sampling.percent_to_sigma(percent) for percent in self.percents)
        self.whole = tuple(latents.shape)
        key = (latents.shape[0], *latents.shape[-2:], Part())
        known = self.controls.get(key) if self.encoded is self.image else None
        self.encoded = self.image
        self.controls = {key: known or self._control(*key)}

    def at(self, x: Tensor, transformer_options: dict, parts: Sequence[Part] = ()) -> Control | None:
        """What steers latents x [B, C, H, W], conditionings joined, at this step; None out of its turn.

        parts: of each conditioning, which part of the latents of the run it is for.
        """
        start, end = self.sigmas
        if self.percents != (0.0, 1.0):
            sigma = sigma_now(transformer_options)
            if sigma is None:
                step = transformer_options["sigmas"]
                sigma = self.sigma.once(step, (), lambda: float(step[0]))
            if not end < sigma - SAME_SIGMA <= start:
                return None
        different = tuple(dict.fromkeys(parts or (Part(),)))
        parts = different if len(different) == 1 else tuple(parts)
        if not all(part.fits(x.shape, self.whole or x.shape) for part in parts):
            report_lost(x.shape[-2:], self.whole[-2:])
            parts = ()
        count = x.shape[0] // len(transformer_options.get("cond_or_uncond", (0,)))
        key = (count, *x.shape[-2:], *parts)
        if key not in self.controls:
            loaded = management.loaded_models(only_currently_used=True)
            self.controls[key] = self._control(*key)
            management.load_models_gpu(loaded)
        return self.controls[key]

    def _control(self, count: int, height: int, width: int, *parts: Part) -> Control:
        """For `count` latents of each part; without parts the whole picture gets the size of the latents."""
        size = self.whole[-2:] if parts and self.whole else (height, width)
        latents = [self._latent(*size, part) for part in parts or (Part(),)]
        if len(latents) > 1 or len(latents[0]) > 1:
            latents = [filled(latent, count) for latent in latents]
        return Control(self.network, torch.cat(latents), self.strength)

    def _latent(self, height: int, width: int, part: Part) -> Tensor:
        """What the network reads of one part of latents of that size."""
        scale = self.vae.spacial_compression_encode()

        def sized(source: Tensor | None, method: str) -> Tensor | None:
            if source is None:
                return None
            size = (width * scale, height * scale, method, "center")
            tiles = [comfy.utils.common_upscale(tile, *size) for tile in self._tiles(source)]
            return part.of(torch.cat(tiles), scale)

        return control_latent(
            self._encode,
            self.network.config.channels,
            sized(self.picture, "area"),
            sized(self.inpaint, "area"),
            sized(self.repaint, "bilinear"),
        )

    def _tiles(self, pixels: Tensor) -> list[Tensor]:
        """pixels [b, C, h, w] -> what of them `image` was cut to: all, one tile, or several in a batch."""
        batch, height, width = self.size
        if self.image.shape[:3] == self.size:
            return [pixels]
        down, across = pixels.shape[-2] / height, pixels.shape[-1] / width
        first, last = (self.image[::batch, corner, corner, 3:].tolist() for corner in (0, -1))
        return [
            pixels[
                ...,
                round(top * down) : round((bottom + 1) * down),
                round(left * across) : round((right + 1) * across),
            ]
            for (top, left), (bottom, right) in zip(first, last, strict=True)
        ]

    def _encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> scaled latents [B, 16, H / 8, W / 8]"""
        latent, needed = self.vae.encode(pixels.movedim(1, -1)), self.network.config.blocks.in_channels
        if latent.ndim != 4 or latent.shape[1] != needed:
            raise ValueError(
                f"this VAE gives latents of shape {tuple(latent.shape)}, the control reads {needed} "
                "channels: use the Flux.1 autoencoder (ae.safetensors)"
            )
        return comfy.latent_formats.Flux().process_in(latent)


def located(pixels: Tensor) -> Tensor:
    """[B, H, W, 3 or more] -> [B, H, W, 5]: with the row and the column of each pixel."""
    batch, height, width = pixels.shape[:3]
    rows = torch.arange(height, dtype=torch.float32, device=pixels.device)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float32, device=pixels.device).expand(height, width)
    places = torch.stack((rows, columns), dim=-1).expand(batch, -1, -1, -1)
    return torch.cat((pixels[..., :3], places), dim=-1)
