"""A prompt and reference pictures -> the conditioning that omni weights take, under the host's own names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...zimage_core.prompt.template import split_prompt
from ...zimage_core.reference_image import prepare_reference
from .files import nano_settings

REFERENCE_SIDE = 1024  # pixels of a square with the area that a reference has at most


def omni_conditioning(clip: Any, prompt: str, vae: Any, references: list[Tensor], vision: Any = None) -> list:
    """CONDITIONING as the host's TextEncodeZImageOmni writes it, for our MODEL and its own.

    references: pictures [B, H, W, 3], of each the first; their latents come from vae, scaled to at most
    1024 x 1024 pixels (128 x 128 for the built-in model). vision: CLIP_VISION, or None to do without. A
    guided run needs the same references in the negative: call again with its prompt.
    """
    segments = [
        clip.encode_from_tokens_scheduled(clip.tokenize(segment, llama_template="{}"))
        for segment in split_prompt(prompt, len(references))
    ]
    if not references:
        return segments[0]
    *before, conditioning, closing = segments
    nano = nano_settings()
    small = conditioning[0][0].shape[-1] == nano["text_encoder"]["hidden_size"]
    pictures = [
        prepare_reference(picture[:1], nano["resolution"] if small else REFERENCE_SIDE)
        for picture in references
    ]
    values = {
        "reference_latents": [vae.encode(picture.encoded) for picture in pictures],
        "reference_latents_text_embeds": [segment[0][0] for segment in (*before, closing)],
    }
    if vision is not None:
        values["clip_vision_outputs"] = [vision.encode_image(picture.seen) for picture in pictures]
    return [[features, {**more, **values}] for features, more in conditioning]
