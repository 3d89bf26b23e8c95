"""Reference images in one sequence with the prompt and the picture: the omni weights, those with `siglip_*`.

For n references the prompt is cut in n + 2 segments (`prompt.template.split_prompt`): segment i leads to
reference i, segment n + 1 holds the prompt and leads to the picture, segment n + 2 closes the turn. On the
frame axis of rope everything follows in reading order, counting real tokens only:

    segment 1 | reference 1 | its siglip | segment 2 | ... | prompt | picture | - | closing segment

An image takes one frame with its rows and columns, its siglip features the next one. References, their
segments and all siglip tokens are clean: they are modulated with t = 1, the rest with the step's t.

In the sequence the clean tokens come first, then the prompt, the closing segment and the picture: attention
does not see the order, and so every factor of modulation covers one slice of it.

Two implementations are public, weights are not; where they differ this one does as ComfyUI's, on which people
would run such weights:

- A segment's positions continue through its padding, and the next segment starts after the real tokens, so
  the two overlap. diffusers means the same, but pads the list of positions twice: from its second segment on
  tokens get another token's place.
- Siglip cell i of h sits at row floor(i * (8 h - 1) / (h - 1)), columns likewise; in diffusers at
  floor(i * (latent rows - 1) / (h - 1)). They agree when the latent has 8 h rows.
- Where siglip features are missing, and for the picture, 32 siglip_pad_tokens stand at (0, 0, 0). The
  picture's are clean; in diffusers they are noisy, and there are none at all without any features.
- Siglip features are flattened as both do it: [h, w, C] is brought to channels first and that memory is read
  as [h * w, C], so a token mixes cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import S3DiTConfig
from ..model.memo import RunMemo
from ..model.rope import caption_ids, image_ids, rope_table

if TYPE_CHECKING:
    from ..model.s3dit import Modulation, S3DiT

SIGLIP_SPAN = 8  # rows and columns of rope that one cell of siglip features spans


class ByToken(NamedTuple):
    """A factor of modulation for two kinds of tokens: the first `start` of a sequence are clean."""

    clean: Tensor  # [1, 1, D]
    noisy: Tensor  # [B, 1, D]
    start: int


def times(x: Tensor, factor: Tensor | ByToken) -> Tensor:
    """x: [B, S, D] times one factor [B, 1, D], or times each token's own; x must be of no other use."""
    if isinstance(factor, Tensor):
        return x * factor
    clean, noisy = x[:, : factor.start], x[:, factor.start :]
    if torch.is_grad_enabled():
        return torch.cat((clean * factor.clean, noisy * factor.noisy), dim=1)
    clean.mul_(factor.clean), noisy.mul_(factor.noisy)  # as they lie: half the traffic of memory
    return x


def by_token(clean: list[Modulation], noisy: list[Modulation], start: int) -> list[Modulation]:
    """Modulations of blocks, for sequences of which the first `start` tokens are clean."""
    return [
        tuple(ByToken(*factors, start) for factors in zip(*pair, strict=True))
        for pair in zip(clean, noisy, strict=True)
    ]


def renewed(modulation: Modulation, noisy: Modulation) -> Modulation:
    """`noisy` in place of a block's modulation, or of the part for its noisy tokens."""
    return tuple(
        new if isinstance(old, Tensor) else old._replace(noisy=new)
        for old, new in zip(modulation, noisy, strict=True)
    )


class References(NamedTuple):
    """n clean images and what goes with them; every tensor has a batch of 1 or of the picture's."""

    latents: Sequence[Tensor]  # n of [B, C, h, w], scaled as the picture's; sizes may differ
    contexts: Sequence[Tensor | None]  # n of [B, L, cap_feat_dim]: the segment before each, no padding
    siglip: Sequence[Tensor | None]  # n of [B, hs, ws, siglip_feat_dim]
    closing: Tensor | None  # [B, L, cap_feat_dim]: the segment after the prompt's

    @classmethod
    def of(
        cls,
        config: S3DiTConfig,
        latents: Sequence[Tensor],
        contexts: Sequence[Tensor | None] | None,
        siglip: Sequence[Tensor | None] | None,
    ) -> References:
        """contexts: all segments but the prompt's, in order. Of contexts and siglip some may be missing.

        Raises ValueError for weights that take no references, and when widths or counts do not fit.
        """
        if config.siglip_feat_dim is None:
            raise ValueError("these weights have no omni keys (siglip_*): they take no reference images")
        count, contexts = len(latents), contexts or ()
        if len(contexts) > count + 1:
            raise ValueError(
                f"{len(contexts)} captions besides the prompt for {count} reference images: there is one "
                f"before each and one after the prompt"
            )
        for latent in latents:
            if latent.ndim != 4 or latent.shape[1] != config.in_channels:
                raise ValueError(
                    f"a reference latent has shape {tuple(latent.shape)}, this model takes "
                    f"[B, {config.in_channels}, H, W]"
                )
        segments = [*contexts, *[None] * (count + 1 - len(contexts))]
        seen = [*(siglip or ()), *[None] * count][:count]
        for features in seen:
            if features is not None and features.shape[-1] != config.siglip_feat_dim:
                raise ValueError(
                    f"siglip features are {features.shape[-1]} wide, this model takes "
                    f"{config.siglip_feat_dim}: use the vision encoder that belongs to it"
                )
        return cls(latents, segments[:count], seen, segments[count])


class Places(NamedTuple):
    """Rope tables [1 or B, tokens, ...], and the key masks of prompts that pad to different lengths."""

    caption: Tensor  # of all segments
    siglip: Tensor
    image: Tensor  # of the references and the picture
    joint: Tensor  # of the whole sequence
    caption_mask: Tensor | None  # bool [B, 1, 1, tokens]
    joint_mask: Tensor | None


def prepare(
    model: S3DiT,
    references: References,
    x: Tensor,
    context: Tensor,
    lengths: list[int],
    rows: int,
    columns: int,
    transformer_options: dict,
    memo: RunMemo,
    place: tuple,
    key: tuple,
    modulations: tuple,
) -> tuple:
    """The fields of `Prepared` for a forward with references; place, key: what their values depend on."""
    rope_options = transformer_options.get("rope_options") or {}
    at = memo.once(
        ("places", *place), lambda: places(model, references, lengths, rows, columns, rope_options, x.device)
    )
    clean, images, caption = memo.once(
        ("tokens", *key),
        lambda: tokens(model, references, context, lengths, at, x, transformer_options),
    )
    _, clean_refiner, clean_layers, _ = memo.once(
        ("clean modulation", x.dtype, x.device),
        lambda: model.modulations(torch.zeros(1, device=x.device), x.dtype),
    )
    adaln_input, refiner, layers, final_scale = modulations
    refiner = by_token(clean_refiner, refiner, images.shape[1])
    layers = by_token(clean_layers, layers, clean.shape[1] + images.shape[1])
    return (
        *(caption, at.image, at.joint, at.joint_mask),
        *(adaln_input, refiner, layers, final_scale),
        *(clean, images),
    )


def tokens(
    model: S3DiT,
    references: References,
    context: Tensor,
    lengths: list[int],
    places: Places,
    x: Tensor,
    transformer_options: dict,
) -> tuple[Tensor, Tensor, Tensor]:
    """The clean tokens but for the reference images, these, and the prompt's with the closing segment's."""
    batch, dtype = x.shape[0], x.dtype

    def batched(t: Tensor) -> Tensor:
        return t if t.shape[0] == batch else t.repeat(-(-batch // t.shape[0]), 1, 1)[:batch]

    def segment(features: Tensor) -> Tensor:
        return batched(model.pad(model.cap_embedder(features.to(dtype)), model.cap_pad_token))

    clean = [
        model.cap_pad_token.to(x).expand(batch, model.config.pad_multiple, -1) if c is None else segment(c)
        for c in references.contexts
    ]
    closing = [] if references.closing is None else [segment(references.closing)]
    longest = places.caption.shape[1] - sum(t.shape[1] for t in (*clean, *closing))
    prompt = model.embed_caption(context, lengths, longest, dtype)
    caption = model.refine(
        model.context_refiner,
        torch.cat((*clean, prompt, *closing), dim=1),
        places.caption_mask,
        places.caption,
        transformer_options,
    )
    split = sum(t.shape[1] for t in clean)

    missing = model.siglip_pad_token.to(x).expand(batch, model.config.pad_multiple, -1)
    siglip = [missing if f is None else batched(embed_siglip(model, f, dtype)) for f in references.siglip]
    siglip = model.refine(
        model.siglip_refiner, torch.cat((*siglip, missing), dim=1), None, places.siglip, transformer_options
    )
    images = [
        batched(model.pad(model.x_embedder(model.patchify(model.even(t.to(x)))), model.x_pad_token))
        for t in references.latents
    ]
    return torch.cat((caption[:, :split], siglip), dim=1), torch.cat(images, dim=1), caption[:, split:]


def embed_siglip(model: S3DiT, features: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, hs, ws, C] -> [B, padded, D], with the reordering that the docstring above names."""
    mixed = features.to(dtype).permute(0, 3, 1, 2).reshape(features.shape[0], -1, features.shape[-1])
    return model.pad(model.siglip_embedder(mixed), model.siglip_pad_token)


def places(
    model: S3DiT,
    references: References,
    lengths: list[int],
    rows: int,
    columns: int,
    rope_options: dict,
    device: torch.device,
) -> Places:
    """lengths: real tokens of each sample's prompt; rows, columns: the picture's patches."""
    patch = model.config.patch_size

    def caption(segment: Tensor | None, frame: int) -> Tensor:
        length = model.config.pad_multiple if segment is None else model.padded(segment.shape[1])
        return caption_ids(length, device, frame)

    def image(frame: int, rows: int, columns: int) -> Tensor:
        return image_ids(frame, rows, columns, model.padded(rows * columns), rope_options, device)

    captions, images, siglip = [], [], []
    frame = 0  # the last one taken
    for latent, segment, features in zip(*references[:3], strict=True):
        captions.append(caption(segment, frame))
        frame += 0 if segment is None else segment.shape[1]
        images.append(image(frame + 1, *(-(-side // patch) for side in latent.shape[-2:])))
        siglip.append(siglip_ids(model, features, frame + 2, device))
        frame += 2
    siglip.append(siglip_ids(model, None, frame, device))
    clean = torch.cat((*captions, *siglip))
    images = torch.cat(images)

    padded = [model.padded(length) for length in lengths]
    each = lengths if min(lengths) != max(lengths) else lengths[:1]  # one table serves equal samples
    prompt = caption_ids(max(padded), device, frame)
    ends = [frame + length for length in each]
    if references.closing is None:
        noisy = torch.stack([prompt for _ in ends])
    else:
        noisy = torch.stack([torch.cat((prompt, caption(references.closing, end + 2))) for end in ends])
    picture = torch.stack([image(end + 1, rows, columns) for end in ends])

    def table(*ids: Tensor) -> Tensor:
        parts = [part if part.ndim == 3 else part.expand(len(ends), -1, -1) for part in ids]
        return rope_table(torch.cat(parts, dim=1), model.config.axes_dims, model.config.rope_theta)

    tables = (
        table(*captions, noisy),
        table(*siglip),
        table(images, picture),
        table(clean, images, noisy, picture),
    )
    if min(padded) == max(padded):
        return Places(*tables, None, None)
    real = torch.arange(max(padded), device=device) < torch.tensor(padded, device=device)[:, None]
    closing, before = noisy.shape[1] - max(padded), sum(len(ids) for ids in captions)
    caption_mask = F.pad(real, (before, closing), value=True)
    before = len(clean) + len(images)
    joint_mask = F.pad(real, (before, closing + picture.shape[1]), value=True)
    return Places(*tables, caption_mask[:, None, None], joint_mask[:, None, None])


def siglip_ids(model: S3DiT, features: Tensor | None, frame: int, device: torch.device) -> Tensor:
    """[padded, 3]: features [B, hs, ws, C] row by row at one frame, spread over rows and columns."""
    if features is None:
        return torch.zeros(model.config.pad_multiple, 3, device=device)
    rows, columns = features.shape[1:3]
    ids = torch.zeros(model.padded(rows * columns), 3, device=device)
    y, x = (torch.linspace(0, SIGLIP_SPAN * n - 1, n, device=device).floor() for n in (rows, columns))
    grid = ids[: rows * columns]
    grid[:, 0] = frame
    grid[:, 1] = y.repeat_interleave(columns)
    grid[:, 2] = x.repeat(rows)
    return ids
