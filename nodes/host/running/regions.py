"""Prompts for regions in a conditioning: how they get in, and what a model takes."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
import torch.nn.functional as F
from comfy.conds import CONDRegular
from torch import Tensor

from ....zimage_core.conditions.regions import Region
from ....zimage_core.model.sequence import Captions

REGIONS = "zimage_regions"  # in a conditioning: a tuple of Region


class UnreadRegions(CONDRegular):
    """Stands in a conditioning where models put their own parts, and raises when it is still there.

    Our MODEL replaces it before the first step; any other comes upon it there.
    """

    def __init__(self) -> None:
        super().__init__(None)

    def process_cond(self, **kwargs: Any) -> UnreadRegions:
        raise ValueError(
            "This MODEL takes no prompts for regions (Z-Image Regional Prompt). For Z-Image: put Z-Image "
            "Accelerate between its loader and the sampler, or load it with the Z-Image loader."
        )


def with_region(conditioning: list, region: list, mask: Tensor, strength: float) -> list:
    """`conditioning` and the prompt of `region` where mask [B, h, w] is 1; all its entries get it.

    Raises ValueError when `region` is not one plain prompt.
    """
    if len(region) != 1 or REGIONS in region[0][1]:
        raise ValueError(
            f"region_conditioning holds {len(region)} prompts or has regions itself; it must be one prompt "
            "from a text encoder. For several regions chain one node to the next by its conditioning."
        )
    features, more = region[0]
    weight = mask.reshape(-1, *mask.shape[-2:]).float().clamp(0, 1) * strength
    added = Region(Captions.masked(features, more.get("attention_mask")), weight)
    return [
        [
            caption,
            {
                **extra,
                REGIONS: (*extra.get(REGIONS, ()), added),
                "model_conds": {**extra.get("model_conds", {}), "regions": UnreadRegions()},
            },
        ]
        for caption, extra in conditioning
    ]


class RegionsCond(CONDRegular):
    """The regions of one conditioning, in cells of the whole latent.

    In a batch with other prompts only when `together` is set; there a prompt that has fewer gets empty ones.
    """

    def __init__(self, cond: tuple[Region, ...], together: bool, batch: int = 1) -> None:
        super().__init__(cond)
        self.together, self.batch = together, batch

    @classmethod
    def of(cls, cond: dict, together: bool) -> RegionsCond:
        """cond: a conditioning, and with it the noise and the device, as the host hands them to a model."""
        size, device = cond["noise"].shape[-2:], cond["device"]
        regions = tuple(
            Region(
                Captions(captions.features.to(device), captions.lengths),
                F.interpolate(weight[:, None], size, mode="area")[:, 0],
            )
            for captions, weight in cond.get(REGIONS, ())
        )
        return cls(regions, together)

    def process_cond(self, batch_size: int, **kwargs: Any) -> RegionsCond:
        made = []
        for captions, weight in self.cond:
            if len(weight) > 1:  # each picture's own
                weight = comfy.utils.repeat_to_batch_size(weight, batch_size)
            features = comfy.utils.repeat_to_batch_size(captions.features, batch_size)
            lengths = (captions.lengths * batch_size)[:batch_size]
            made.append(Region(Captions(features, lengths), weight))
        return RegionsCond(tuple(made), self.together, batch_size)

    def can_concat(self, other: RegionsCond) -> bool:
        return self.together

    def concat(self, others: list[RegionsCond]) -> tuple[Region, ...]:
        parts = [self, *others]
        most = max(parts, key=lambda part: len(part.cond)).cond
        if not others or not most:
            return most
        features, weight = most[0].captions.features, most[0].weight

        def region(part: RegionsCond, index: int) -> Region:
            """One that counts nowhere for a prompt that has fewer."""
            if index < len(part.cond):
                return part.cond[index]
            empty = Captions.whole(features.new_zeros(part.batch, 1, features.shape[-1]))
            return Region(empty, torch.zeros_like(weight[:1]))

        merged = []
        for index in range(len(most)):
            own = [region(part, index) for part in parts]
            weights = [r.weight.expand(part.batch, -1, -1) for r, part in zip(own, parts, strict=True)]
            merged.append(Region(Captions.joined([r.captions for r in own]), torch.cat(weights)))
        return tuple(merged)

    def size(self) -> list[int]:
        return [1]
