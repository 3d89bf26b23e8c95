"""Prompts for parts of the picture, in one sequence with the prompt of the whole: prompt, regions', picture.

In the joint layers picture tokens see all of the picture, as always. What they see of the captions, and these
of them, depends on the place. A region's `weight` there multiplies the attention that its caption gets before
the softmax; what the weights of all regions leave, the product of 1 - weight, multiplies that of the prompt.
Captions see themselves, but not each other. So a weight of 0 everywhere is as if there were no region, and
one of 1 everywhere is as if the region's caption were the prompt.

Every caption ends just before the picture on the frame axis of rope, where it would end alone. The picture's
learned tokens have no place: each caption counts for them with its mean, and they stand, likewise, between
where they would stand with each caption alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.hooks import BlockHook
from ..model.rope import caption_ids, image_ids
from ..model.s3dit import Prompt, S3DiT
from ..model.sequence import Captions, Prepared, Span


class Region(NamedTuple):
    """Captions, one or as many as latents, and where they count."""

    captions: Captions
    weight: Tensor  # [1 or B, h, w] in 0 to 1, spread over the picture whatever its size


@dataclass(frozen=True, eq=False)
class Regions:
    """A prompt for the whole picture and others for parts of it."""

    prompt: Prompt
    regions: Sequence[Region]

    def prepare(self, model: S3DiT, x: Tensor, hooks: Sequence[BlockHook] = ()) -> Prepared:
        """Raises ValueError for features of another width."""
        batch, (rows, columns), dev = x.shape[0], model.patches(x), x.device
        captions = [c.batched(batch) for c in (self.prompt.captions, *(r.captions for r in self.regions))]
        model.check_widths(x, captions[0])
        wide = captions[0].features.shape[-1]
        for other in captions[1:]:
            if other.features.shape[-1] != wide:
                raise ValueError(
                    f"a region's caption features are {other.features.shape[-1]} wide, the prompt's "
                    f"{wide}: encode both with the same text encoder"
                )
        padded = torch.tensor([[model.padded(n) for n in each.lengths] for each in captions])  # [captions, B]
        # [1 or B, N, captions]
        weights = patch_weights(self.regions, x.shape[-2:], model.config.patch_size, dev)
        if weights.shape[0] == 1 and (padded == padded[:, :1]).all():
            padded = padded[:, :1]  # one table and one bias serve equal samples
        shares = weights.mean(dim=1)  # [1 or B, captions]
        pads = model.padded(rows * columns) - rows * columns
        weights = torch.cat((weights, shares[:, None].expand(-1, pads, -1)), dim=1)

        spans = padded.amax(dim=1).tolist()  # tokens of each caption in the sequence
        ids = []
        for sample, each in enumerate(padded.T.tolist()):
            end, share = each[0], shares[min(sample, len(shares) - 1)]
            text = [caption_ids(span, dev, end - length) for span, length in zip(spans, each, strict=True)]
            image = image_ids(end + 1, rows, columns, rows * columns + pads, self.prompt.grid, dev)
            image[rows * columns :, 0] = (share * (end - torch.tensor(each, device=dev))).sum() / share.sum()
            ids.append(torch.cat((*text, image)))
        freqs = model.rope_table(torch.stack(ids))

        refined, real, start = [], [], 0
        for caption, span, each in zip(captions, spans, padded, strict=True):
            real.append(torch.arange(span) < each[:, None])  # [1 or B, span]
            mask = None if real[-1].all() else real[-1].to(dev)[:, None, None]
            tokens = model.embed_text(caption, span, x.dtype)
            table = freqs[:, start : start + span]
            refined.append(model.run("context_refiner", tokens, Span(table, mask), hooks=hooks))
            start += span
        bias = attention_bias(weights, torch.cat(real, dim=1).to(dev), spans, x.dtype)
        return Prepared(torch.cat(refined, dim=1), Span(freqs[:, start:]), Span(freqs, bias))


def patch_weights(regions: Sequence[Region], size: Sequence[int], patch: int, device: torch.device) -> Tensor:
    """What each caption counts at each patch: [1 or B, N, captions], the prompt first.

    size: height and width of the latent. A patch has the mean weight of its cells.
    """
    height, width = size
    each = []
    for region in regions:
        cells = F.interpolate(region.weight.to(device).float()[:, None], (height, width), mode="area")
        cells = F.pad(cells, (0, -width % patch, 0, -height % patch), mode="replicate")
        each.append(F.avg_pool2d(cells, patch).flatten(1).clamp(0, 1))
    weights = torch.stack(torch.broadcast_tensors(*each), dim=-1)
    return torch.cat(((1 - weights).prod(dim=-1, keepdim=True), weights), dim=-1)


def attention_bias(weights: Tensor, real: Tensor, spans: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What is added to the scores of attention: [K, 1, T + N, T + N] in dtype.

    weights: [K, N, captions]. real: bool [K, T], tokens that are no padding up to another sample's length.
    spans: tokens of each caption, T together. What is not seen gets the smallest number of dtype.
    """
    owner = torch.arange(len(spans), device=real.device).repeat_interleave(
        torch.tensor(spans, device=real.device)
    )
    samples = max(len(weights), len(real))
    total = real.shape[1] + weights.shape[1]
    bias = torch.zeros(samples, total, total, dtype=dtype, device=real.device)

    def put(at: Tensor, factors: Tensor) -> None:
        at.copy_(factors.log().clamp(min=torch.finfo(dtype).min))

    start = real.shape[1]
    put(bias[:, :start, :start], ((owner[:, None] == owner) & real[:, None]).float())
    put(bias[:, start:, :start], weights[..., owner] * real[:, None])
    put(bias[:, :start, start:], weights[..., owner].mT)
    return bias[:, None]


def region(pair: Any) -> tuple[str | list[str], Tensor]:
    """A pair of prompt and weight [h, w] or [1, h, w] -> the same with [1, h, w].

    Raises ValueError for anything else, and for weights outside 0 to 1.
    """
    try:
        texts, weight = pair
        weight = torch.as_tensor(weight).float()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"regions holds {type(pair).__name__} {str(pair)[:40]!r}, expected pairs of a prompt and a "
            "weight [h, w]"
        ) from None
    if weight.shape[:-2] not in ((), (1,)) or weight.ndim < 2 or not weight.numel():
        raise ValueError(f"a region's weight has shape {tuple(weight.shape)}, expected [h, w]")
    least, most = float(weight.min()), float(weight.max())
    if not 0 <= least <= most <= 1:
        raise ValueError(f"a region's weight goes from {least:g} to {most:g}, expected 0 to 1")
    return texts, weight.reshape(1, *weight.shape[-2:])
