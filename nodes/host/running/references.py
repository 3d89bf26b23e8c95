"""Reference pictures in a conditioning, under the host's names: how they get in, and what a model takes."""

from __future__ import annotations

import math
from typing import Any

import comfy.utils
import torch
from comfy.conds import CONDRegular
from torch import Tensor

from ....zimage_core.conditions.reference_image import prepare_reference
from ....zimage_core.config import REFERENCE_AREA, S3DiTConfig, VisionConfig
from ....zimage_core.prompt.template import split_prompt
from ..built_in import nano_settings

PATCH_AREA = S3DiTConfig.patch_size**2  # latent cells per token
CELLS = {  # argument of omni models -> how many latent cells one of its tensors is worth
    "ref_latents": lambda latent: math.prod(latent.shape[-2:]),
    "ref_contexts": lambda caption: caption.shape[1] * PATCH_AREA,
    "siglip_feats": lambda features: math.prod(features.shape[1:3]) * PATCH_AREA,
}


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
        prepare_reference(picture[:1], nano["resolution"] ** 2 if small else REFERENCE_AREA)
        for picture in references
    ]
    values = {
        "reference_latents": [vae.encode(picture.encoded) for picture in pictures],
        "reference_latents_text_embeds": [segment[0][0] for segment in (*before, closing)],
    }
    if vision is not None:
        values["clip_vision_outputs"] = [vision.encode_image(picture.seen) for picture in pictures]
    return [[features, {**more, **values}] for features, more in conditioning]


class ReferenceCond(CONDRegular):
    """Tensors of one argument of omni models, None where one is missing, one for each reference image."""

    def __init__(self, cond: list[Tensor | None], name: str) -> None:
        super().__init__(cond)
        self.name = name

    def _copy_with(self, cond: list[Tensor | None]) -> ReferenceCond:
        return ReferenceCond(cond, self.name)

    def process_cond(self, batch_size: int, **kwargs: Any) -> ReferenceCond:
        return self._copy_with(
            [t if t is None else comfy.utils.repeat_to_batch_size(t, batch_size) for t in self.cond]
        )

    def can_concat(self, other: ReferenceCond) -> bool:
        mine, theirs = ([None if t is None else t.shape for t in cond.cond] for cond in (self, other))
        return mine == theirs

    def concat(self, others: list[ReferenceCond]) -> list[Tensor | None]:
        rows = zip(self.cond, *(other.cond for other in others), strict=True)
        return [None if row[0] is None else torch.cat(row) for row in rows]

    def size(self) -> list[int]:
        """As a shape for the host's rule of memory, which counts cells."""
        tensors = [t for t in self.cond if t is not None]
        batch = tensors[0].shape[0] if tensors else 1
        return [batch, 1, sum(map(CELLS[self.name], tensors))]


def reference_conds(cond: dict) -> dict[str, ReferenceCond]:
    """What the host's TextEncodeZImageOmni and ReferenceLatent write, as omni models take it.

    Latents are not scaled yet. Without latents there are no references.
    """
    latents = cond.get("reference_latents")
    if not latents:
        return {}
    seen = cond.get("clip_vision_outputs")
    if seen is None:  # the older way of handing them over, by unCLIPConditioning
        seen = [entry.get("clip_vision_output") for entry in cond.get("unclip_conditioning", ())]
    conds = {
        "ref_latents": list(latents),
        "ref_contexts": list(cond.get("reference_latents_text_embeds") or ()),
        "siglip_feats": [None if output is None else vision_grid(output) for output in seen],
    }
    return {name: ReferenceCond(tensors, name) for name, tensors in conds.items()}


def vision_grid(output: Any) -> Tensor:
    """The host's CLIP_VISION_OUTPUT -> features [B, rows, columns, C]."""
    features = output["last_hidden_state"]
    rows, columns = (int(side) // VisionConfig.patch_size for side in output["image_sizes"][0][1:])
    if rows * columns != features.shape[1]:
        raise ValueError(
            f"the vision encoder gave {features.shape[1]} tokens for a picture of {rows}x{columns} patches: "
            f"omni weights need SigLIP 2 naflex (siglip2-so400m-patch16-naflex)"
        )
    return features.unflatten(1, (rows, columns))
