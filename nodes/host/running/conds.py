"""What a conditioning brings to the model: its caption, how long that is, and the memo of the run.

The host runs conditionings in one batch when all their parts say that they can be joined, and the memory is
enough. Its own Z-Image never joins captions of different lengths; ours knows each sample's length.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.nn.functional as F
from comfy.conds import CONDRegular
from torch import Tensor

from ....zimage_core.model.memo import RunMemo, StepMemo
from ....zimage_core.model.sequence import Captions, joined
from .one_pass import packs
from .references import CELLS, ReferenceCond, reference_conds
from .regions import REGIONS, RegionsCond

SEES_BOTH = ("attn1_patch", "attn1_output_patch")  # patches that compare positive and negative


class CaptionCond(CONDRegular):
    """Caption features [B, L, width], L a multiple of what the model pads to.

    Captions that pad to different lengths share a batch when they can be packed, which those of one area can,
    or when `together` is set: then they need a mask, which rules out the fastest attention kernels.
    """

    def __init__(self, cond: Tensor, together: bool, packs: bool, area: Any = None) -> None:
        super().__init__(cond)
        self.together, self.packs, self.area = together, packs, area

    def process_cond(self, batch_size: int, area: list[int] | None = None, **kwargs: Any) -> CaptionCond:
        made = super().process_cond(batch_size)
        made.area = area
        return made

    def _copy_with(self, cond: Tensor) -> CaptionCond:
        return CaptionCond(cond, self.together, self.packs, self.area)

    def can_concat(self, other: CaptionCond) -> bool:
        packed = self.packs and other.packs and self.area == other.area
        return self.together or packed or self.cond.shape == other.cond.shape

    def concat(self, others: list[CaptionCond]) -> Tensor:
        return joined([cond.cond for cond in (self, *others)])


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


@dataclass(eq=False)
class Run:
    """What one run of the sampler keeps. steps: the timesteps that stand for each of its sigmas."""

    memo: RunMemo = field(default_factory=RunMemo)
    steps: StepMemo = field(default_factory=StepMemo)


class Kept(NamedTuple):
    """The key of what is computed once for one conditioning of a run; without a run nothing is kept.

    area: height, width, top and left of the part that it is for; the host uses one for several parts.
    """

    run: Run | None
    token: object
    area: tuple[int, ...] = ()


class KeptCond(CONDRegular):
    """A Kept of each conditioning in a batch, in a tuple."""

    def process_cond(self, batch_size: int, area: list[int] | None = None, **kwargs: Any) -> KeptCond:
        return KeptCond(tuple(kept._replace(area=tuple(area or ())) for kept in self.cond))

    def can_concat(self, other: KeptCond) -> bool:
        return True

    def concat(self, others: list[KeptCond]) -> tuple[Kept, ...]:
        return sum((other.cond for other in others), self.cond)

    def size(self) -> list[int]:
        return [1]


def caption_conds(out: dict, cond: dict, model: Any, multiple: int, runs: StepMemo) -> dict:
    """`out`, what the host's Lumina2 makes of a conditioning `cond`, with our parts in place of its own.

    multiple: what the model pads captions to. runs: the latest run of this model; the host has one tensor of
    noise in each. Called once per conditioning and run.
    """
    caption = cond.get("cross_attn")
    if caption is None:
        return out
    for name in CELLS:
        out.pop(name, None)
    references = reference_conds(cond)
    if references and model.model_config.unet_config.get("siglip_feat_dim") is None:
        logging.warning(
            "The conditioning has reference images, from a node such as TextEncodeZImageOmni, but these "
            "weights have no omni keys (siglip_*): the images are ignored, the prompt is used."
        )
    elif references:
        scaled = [model.process_latent_in(latent) for latent in references["ref_latents"].cond]
        out |= references | {"ref_latents": ReferenceCond(scaled, "ref_latents")}
    out.pop("attention_mask", None)
    captions = Captions.masked(caption, cond.get("attention_mask"))
    out["num_tokens"] = PerSample(captions.lengths)
    patcher = model.current_patcher
    options, wrappers = (patcher.model_options, patcher.wrappers) if patcher else ({}, {})
    transformer_options = options.get("transformer_options", {})
    patches = transformer_options.get("patches", {})
    together = any(patches.get(name) for name in SEES_BOTH)
    features = F.pad(captions.features, (0, 0, 0, -caption.shape[1] % multiple))
    wrapped = "model_function_wrapper" in options
    packed = not wrapped and "ref_latents" not in out and packs(transformer_options, wrappers)
    out["c_crossattn"] = CaptionCond(features, together, packed)
    if cond.get(REGIONS) or together:  # conditionings of a batch have the same parts
        out["regions"] = RegionsCond.of(cond, together)
    # hooks may change the weights in mid-run, this wrapper captions and times: nothing is kept then
    keeps = cond.get("hooks") is None and not wrapped
    out["kept"] = KeptCond((Kept(runs.once(cond["noise"], (), Run) if keeps else None, object()),))
    return out
