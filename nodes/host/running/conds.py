"""What a conditioning brings to the model: its caption, how long that is, and the memo of the run.

The host runs conditionings in one batch when all their parts say that they can be joined. Its own Z-Image
never joins captions of different lengths; ours knows each sample's length, so that it can.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from comfy.conds import CONDRegular
from torch import Tensor

from ....zimage_core.model.memo import RunMemo, TimestepMemo
from .references import CELLS, ReferenceCond, reference_conds
from .regions import REGIONS, RegionsCond

SEES_BOTH = ("attn1_patch", "attn1_output_patch")  # patches that compare positive and negative


class CaptionCond(CONDRegular):
    """Caption features [B, L, width], L a multiple of what the model pads to.

    Captions that pad to different lengths share a batch only when `together` is set: the mask that they need
    rules out the fastest attention kernels.
    """

    def __init__(self, cond: Tensor, together: bool) -> None:
        super().__init__(cond)
        self.together = together

    def _copy_with(self, cond: Tensor) -> CaptionCond:
        return CaptionCond(cond, self.together)

    def can_concat(self, other: CaptionCond) -> bool:
        return self.together or self.cond.shape == other.cond.shape

    def concat(self, others: list[CaptionCond]) -> Tensor:
        captions = [cond.cond for cond in (self, *others)]
        longest = max(caption.shape[1] for caption in captions)
        return torch.cat([F.pad(caption, (0, 0, 0, longest - caption.shape[1])) for caption in captions])


class PerSample(CONDRegular):
    """A tuple with one entry per sample, which the host hands on as it is."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> PerSample:
        repeats = -(-batch_size // len(self.cond))
        return self._copy_with((self.cond * repeats)[:batch_size])

    def can_concat(self, other: PerSample) -> bool:
        return True

    def concat(self, others: list[PerSample]) -> tuple:
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        return [1]


class PerConditioning(PerSample):
    """A tuple with one entry per conditioning, whatever its batch."""

    def process_cond(self, batch_size: int, **kwargs: Any) -> PerConditioning:
        return self._copy_with(self.cond)


def caption_conds(out: dict, given: dict, model: Any, multiple: int, timestep_memo: TimestepMemo) -> dict:
    """`out`, what the host's Lumina2 makes of a conditioning `given`, with our parts in place of its own.

    multiple: what the model pads captions to. Called once per conditioning and run.
    """
    caption = given.get("cross_attn")
    if caption is None:
        return out
    for name in CELLS:
        out.pop(name, None)
    references = reference_conds(given)
    if references and model.model_config.unet_config.get("siglip_feat_dim") is None:
        logging.warning(
            "The conditioning has reference images, from a node such as TextEncodeZImageOmni, but these "
            "weights have no omni keys (siglip_*): the images are ignored, the prompt is used."
        )
    elif references:
        scaled = [model.process_latent_in(latent) for latent in references["ref_latents"].cond]
        out |= references | {"ref_latents": ReferenceCond(scaled, "ref_latents")}
    out.pop("attention_mask", None)
    mask = given.get("attention_mask")
    counts = [caption.shape[1]] if mask is None else mask.bool().sum(dim=-1).clamp(min=1).tolist()
    out["num_tokens"] = PerSample(tuple(int(n) for n in counts))
    patcher = model.current_patcher
    patches = patcher.model_options.get("transformer_options", {}).get("patches", {}) if patcher else {}
    together = any(patches.get(name) for name in SEES_BOTH)
    out["c_crossattn"] = CaptionCond(F.pad(caption, (0, 0, 0, -caption.shape[1] % multiple)), together)
    if given.get(REGIONS) or together:  # conditionings of a batch have the same parts
        out["regions"] = RegionsCond.of(given, together)
    if given.get("hooks") is None:  # hooks may change the weights in mid-run, so nothing is kept then
        out["run_memo"] = PerConditioning((RunMemo(timestep_memo),))
    return out
