"""MODEL, CLIP and VAE of the host as a training takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as management
import torch
from torch import Tensor

from ....zimage_core.train.cache import digest
from ....zimage_core.train.run import Parts
from ....zimage_core.weights.checkpoint import telling_norm, variant_of
from ..running.merged import PREFIX, merged_weight, readable
from ..writing.encodings import encode, tokens_of
from .layers import trainable

PROBE = "the same text for every encoder"
PROBED = 64  # pixels a side
COUNTED = 64  # values of a tensor that say which it is


class Resident:
    """Sees that the host's MODEL is loaded when it computes: encoders may have taken its place.

    room: bytes that stay free beside it. Raises the host's own error where somebody pressed Cancel.
    """

    def __init__(self, patcher: Any) -> None:
        self.patcher, self.room, self.here = patcher, 0, False

    def __call__(self, *call: Any) -> None:
        management.throw_exception_if_processing_interrupted()  # also within a sample
        if not self.here:
            with torch.inference_mode():  # as the host loads models
                management.load_models_gpu([self.patcher], memory_required=self.room)
            self.here = True

    def aside(self, make: Callable[[], Tensor]) -> Tensor:
        """What an encoder makes, as a tensor that may be trained on."""
        self.here = False
        with torch.inference_mode():
            made = make()
        return made.clone()


def parts_of(model: Any, clip: Any, vae: Any) -> tuple[Parts, Resident]:
    """What a run needs, and who loads the MODEL, told of the room beside it before the run.

    Raises NotZImage for another MODEL, ValueError for a CLIP or VAE that does not belong to it.
    """
    network = trainable(model)
    resident, config = Resident(model), network.config
    network.register_forward_pre_hook(resident)

    def encode_pictures(pixels: Tensor) -> Tensor:
        """[B,3,H,W] in [-1,1]."""

        def latents() -> Tensor:
            return model.model.process_latent_in(vae.encode(pixels.movedim(1, -1) / 2 + 0.5))

        return resident.aside(latents).float()

    def decode(latents: Tensor) -> Tensor:
        def pixels() -> Tensor:
            return vae.decode(model.model.process_latent_out(latents.float())).movedim(-1, 1)

        return resident.aside(pixels).clamp(0, 1)

    def features(text: str) -> Tensor:
        return resident.aside(lambda: _features(clip, text))

    latent, text = encode_pictures(_probe()), features(PROBE)
    if latent.ndim != 4 or latent.shape[1] != config.in_channels or latent.shape[-1] * 8 != PROBED:
        raise ValueError(
            f"this VAE makes latents of shape {list(latent.shape)}, the MODEL takes {config.in_channels} "
            "channels at an eighth of the size: choose Z-Image's (ae.safetensors)."
        )
    if text.shape[-1] != config.cap_feat_dim:
        raise ValueError(
            f"this CLIP makes features {text.shape[-1]} wide, the MODEL takes {config.cap_feat_dim}: choose "
            "the text encoder that belongs to it (Qwen3-4B, 2560, for Z-Image)."
        )
    names = digest(_bytes(latent)), digest(_bytes(text))
    return Parts(network, encode_pictures, features, decode, names), resident


def _features(clip: Any, text: str) -> Tensor:
    ((features, more),) = encode(clip, tokens_of(clip, text))
    mask = more.get("attention_mask")
    return features[0] if mask is None else features[0, : int(mask[0].sum())]


def _probe() -> Tensor:
    """A picture by which autoencoders differ."""
    line = torch.linspace(-1, 1, PROBED)
    across = line.expand(PROBED, -1)
    return torch.stack([across, across.T, across.flip(1)])[None]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.float().cpu().numpy().tobytes()


def variant_and_name(patcher: Any) -> tuple[str, str]:
    """Turbo, Base or omni, and a hash of what a MODEL is made of: some weights, and the LoRAs on it."""
    config = readable(patcher).config
    norm = merged_weight(patcher, PREFIX + telling_norm(config))
    pad = merged_weight(patcher, f"{PREFIX}x_pad_token")
    said = [digest(_bytes(norm), _bytes(pad)), *sorted(map(_said, patcher.patches.items()))]
    return variant_of(config, norm), digest(*said)


def _said(patches: tuple[str, list]) -> str:
    key, found = patches
    return digest(key, *map(_some, found))


def _some(value: Any) -> str:
    """A few values of all tensors in the host's patches: nested tuples, lists and adapters with weights."""
    if isinstance(value, Tensor):
        return digest(str(list(value.shape)), _bytes(value.flatten()[:COUNTED]))
    if isinstance(value, (list, tuple)):
        return digest(*map(_some, value))
    if hasattr(value, "weights"):
        return _some(value.weights)
    return str(value) if isinstance(value, (int, float, str)) else type(value).__name__
