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
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.memo import RunMemo
from ..model.rope import caption_ids, image_ids, rope_table

if TYPE_CHECKING:
    from ..model.s3dit import S3DiT


class Region(NamedTuple):
    """A caption and where it counts."""

    context: Tensor  # [1 or B, L, cap_feat_dim], right-padded
    weight: Tensor  # [1 or B, h, w] in 0 to 1, spread over the picture whatever its size
    lengths: tuple[int, ...] = ()  # of each caption, real tokens; when empty all are


def prepare(
    model: S3DiT,
    regions: Sequence[Region],
    x: Tensor,
    context: Tensor,
    lengths: list[int],
    transformer_options: dict,
    memo: RunMemo,
    place: tuple,
    modulations: tuple,
) -> tuple:
    """The fields of `Prepared` for a forward with regions; place: what their values depend on besides x.

    Raises ValueError for features of another width.
    """
    for region in regions:
        if region.context.shape[-1] != context.shape[-1]:
            raise ValueError(
                f"a region's caption features are {region.context.shape[-1]} wide, the prompt's "
                f"{context.shape[-1]}: encode both with the same text encoder"
            )
    sequence = memo.once(
        ("regions", *x.shape, *place),
        lambda: _sequence(model, regions, x, context, lengths, transformer_options),
    )
    return *sequence, *modulations


def _sequence(
    model: S3DiT,
    regions: Sequence[Region],
    x: Tensor,
    context: Tensor,
    lengths: list[int],
    transformer_options: dict,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Refined captions [B, T, D], rope tables of the picture and of all S tokens, and what is added to the
    scores of attention, [1 or B, 1, S, S].
    """
    batch, patch = x.shape[0], model.config.patch_size
    rows, columns = (-(-side // patch) for side in x.shape[-2:])
    contexts, counts = [context], [lengths]
    for region in regions:
        contexts.append(region.context.to(x.device).expand(batch, -1, -1))
        real = list(region.lengths) or [region.context.shape[1]]
        counts.append(real if len(real) == batch else real * batch)
    padded = torch.tensor([[model.padded(n) for n in each] for each in counts])  # [captions, B]
    weights = place_weights(regions, x.shape[-2:], patch, x.device)  # [1 or B, N, captions]
    if weights.shape[0] == 1 and (padded == padded[:, :1]).all():
        padded = padded[:, :1]  # one table and one bias serve equal samples
    shares = weights.mean(dim=1)  # [1 or B, captions]
    pads = model.padded(rows * columns) - rows * columns
    weights = torch.cat((weights, shares[:, None].expand(-1, pads, -1)), dim=1)

    spans = padded.amax(dim=1).tolist()  # of each caption in the sequence
    options = transformer_options.get("rope_options") or {}
    ids = []
    for sample, each in enumerate(padded.T.tolist()):
        end, share = each[0], shares[min(sample, len(shares) - 1)]
        captions = [
            caption_ids(span, x.device, end - length) for span, length in zip(spans, each, strict=True)
        ]
        image = image_ids(end + 1, rows, columns, rows * columns + pads, options, x.device)
        image[rows * columns :, 0] = (share * (end - torch.tensor(each, device=x.device))).sum() / share.sum()
        ids.append(torch.cat((*captions, image)))
    freqs = rope_table(torch.stack(ids), model.config.axes_dims, model.config.rope_theta)

    refined, real, start = [], [], 0
    for features, count, span, each in zip(contexts, counts, spans, padded, strict=True):
        real.append(torch.arange(span) < each[:, None])  # [1 or B, span]
        mask = None if real[-1].all() else real[-1].to(x.device)[:, None, None]
        table = freqs[:, start : start + span]
        refined.append(model.refine_caption(features, count, table, mask, x.dtype, transformer_options))
        start += span
    bias = attention_bias(weights, torch.cat(real, dim=1).to(x.device), spans, x.dtype)
    return torch.cat(refined, dim=1), freqs[:, start:], freqs, bias


def place_weights(regions: Sequence[Region], size: Sequence[int], patch: int, device: torch.device) -> Tensor:
    """What each caption counts at each patch of a latent of this size: [1 or B, N, captions], the prompt
    first. A patch has the mean weight of its cells.
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
    """weights: [K, N, captions]; real: bool [K, T], tokens that are no padding up to another sample's length;
    spans: tokens of each caption, T together. Returns [K, 1, T + N, T + N] in dtype, its smallest number for
    what is not seen.
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
