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
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import S3DiTConfig
from ..model.hooks import BlockHook
from ..model.rope import caption_ids, image_ids
from ..model.s3dit import Prompt, S3DiT
from ..model.sequence import Captions, Prepared, Span, real_tokens

SIGLIP_SPAN = 8  # rows and columns of rope that one cell of siglip features spans


@dataclass(frozen=True, eq=False)
class References:
    """A prompt and n clean images with what goes with them; `of` fills up what is missing.

    Tensors have a batch of 1 or of the picture's.
    """

    prompt: Prompt
    latents: Sequence[Tensor]  # n of [B, C, h, w], scaled as the picture's; sizes may differ
    contexts: Sequence[Tensor | None]  # n of [B, L, cap_feat_dim]: the segment before each
    siglip: Sequence[Tensor | None]  # n of [B, hs, ws, siglip_feat_dim]
    closing: Tensor | None  # [B, L, cap_feat_dim]: the segment after the prompt's

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        latents: Sequence[Tensor],
        contexts: Sequence[Tensor | None] | None = None,
        siglip: Sequence[Tensor | None] | None = None,
    ) -> References:
        """contexts: all segments but the prompt's, in order. Of contexts and siglip some may be missing.

        Raises ValueError for more segments than there are places.
        """
        count, contexts = len(latents), contexts or ()
        if len(contexts) > count + 1:
            raise ValueError(
                f"{len(contexts)} captions besides the prompt for {count} reference images: there is one "
                f"before each and one after the prompt"
            )
        segments = [*contexts, *[None] * (count + 1 - len(contexts))]
        seen = [*(siglip or ()), *[None] * count][:count]
        return cls(prompt, latents, segments[:count], seen, segments[count])

    def prepare(self, model: S3DiT, x: Tensor, hooks: Sequence[BlockHook] = ()) -> Prepared:
        """Raises ValueError for weights that take no references, and for widths that do not fit."""
        captions = self.prompt.captions.batched(x.shape[0])
        model.check_widths(x, captions)
        self._check(model.config)
        at = self._tables(model, captions.lengths, *model.patches(x), x.device)
        clean, images, text = self._tokens(model, captions, at, x, hooks)
        return Prepared(text, Span(at.image), Span(at.joint, at.joint_mask), clean, images)

    def _check(self, config: S3DiTConfig) -> None:
        if config.siglip_feat_dim is None:
            raise ValueError("these weights have no omni keys (siglip_*): they take no reference images")
        for latent in self.latents:
            if latent.ndim != 4 or latent.shape[1] != config.in_channels:
                raise ValueError(
                    f"a reference latent has shape {tuple(latent.shape)}, this model takes "
                    f"[B, {config.in_channels}, H, W]"
                )
        for features in self.siglip:
            if features is not None and features.shape[-1] != config.siglip_feat_dim:
                raise ValueError(
                    f"siglip features are {features.shape[-1]} wide, this model takes "
                    f"{config.siglip_feat_dim}: use the vision encoder that belongs to it"
                )

    def _tokens(
        self, model: S3DiT, captions: Captions, at: Ropes, x: Tensor, hooks: Sequence[BlockHook]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clean tokens but for the reference images, these, and the prompt's with the closing segment's."""
        batch, dtype = x.shape[0], x.dtype

        def batched(t: Tensor) -> Tensor:
            return t if t.shape[0] == batch else t.repeat(-(-batch // t.shape[0]), 1, 1)[:batch]

        def learned(token: Tensor) -> Tensor:
            return token.to(x).expand(batch, model.config.pad_multiple, -1)

        def segment(features: Tensor) -> Tensor:
            return batched(model.pad(model.cap_embedder(features.to(dtype)), model.cap_pad_token))

        clean = [learned(model.cap_pad_token) if c is None else segment(c) for c in self.contexts]
        closing = [] if self.closing is None else [segment(self.closing)]
        longest = at.caption.shape[1] - sum(t.shape[1] for t in (*clean, *closing))
        prompt = model.embed_text(captions, longest, dtype)
        span = Span(at.caption, at.caption_mask)
        text = model.run("context_refiner", torch.cat((*clean, prompt, *closing), dim=1), span, hooks=hooks)
        split = sum(t.shape[1] for t in clean)

        missing = learned(model.siglip_pad_token)
        seen = [missing if f is None else batched(embed_siglip(model, f, dtype)) for f in self.siglip]
        seen = torch.cat((*seen, missing), dim=1)
        seen = model.run("siglip_refiner", seen, Span(at.siglip), hooks=hooks)
        images = [batched(model.embed_image(t.to(x))) for t in self.latents]
        return torch.cat((text[:, :split], seen), dim=1), torch.cat(images, dim=1), text[:, split:]

    def _tables(
        self, model: S3DiT, lengths: Sequence[int], rows: int, columns: int, device: torch.device
    ) -> Ropes:
        """lengths: real tokens of each sample's prompt; rows, columns: the picture's patches."""

        def caption(segment: Tensor | None, frame: int) -> Tensor:
            length = model.config.pad_multiple if segment is None else model.padded(segment.shape[1])
            return caption_ids(length, device, frame)

        def image(frame: int, rows: int, columns: int) -> Tensor:
            return image_ids(frame, rows, columns, model.padded(rows * columns), self.prompt.grid, device)

        captions, images, siglip = [], [], []
        frame = 0  # the last one taken
        for latent, segment, features in zip(self.latents, self.contexts, self.siglip, strict=True):
            captions.append(caption(segment, frame))
            frame += 0 if segment is None else segment.shape[1]
            images.append(image(frame + 1, *model.patches(latent)))
            siglip.append(siglip_ids(model, features, frame + 2, device))
            frame += 2
        siglip.append(siglip_ids(model, None, frame, device))
        clean = torch.cat((*captions, *siglip))
        images = torch.cat(images)

        padded = [model.padded(length) for length in lengths]
        longest = max(padded)
        each = lengths if min(lengths) != max(lengths) else lengths[:1]  # one table serves equal samples
        prompt = caption_ids(longest, device, frame)
        ends = [frame + length for length in each]
        if self.closing is None:
            noisy = torch.stack([prompt for _ in ends])
        else:
            noisy = torch.stack([torch.cat((prompt, caption(self.closing, end + 2))) for end in ends])
        picture = torch.stack([image(end + 1, rows, columns) for end in ends])

        def table(*ids: Tensor) -> Tensor:
            parts = [part if part.ndim == 3 else part.expand(len(ends), -1, -1) for part in ids]
            return model.rope_table(torch.cat(parts, dim=1))

        tables = (
            table(*captions, noisy),
            table(*siglip),
            table(images, picture),
            table(clean, images, noisy, picture),
        )
        if min(padded) == longest:
            return Ropes(*tables, None, None)
        real = real_tokens(padded, longest, device)
        closing, before = noisy.shape[1] - longest, sum(len(ids) for ids in captions)
        caption_mask = F.pad(real, (before, closing), value=True)
        before = len(clean) + len(images)
        joint_mask = F.pad(real, (before, closing + picture.shape[1]), value=True)
        return Ropes(*tables, caption_mask[:, None, None], joint_mask[:, None, None])


class Ropes(NamedTuple):
    """Rope tables [1 or B, tokens, ...], and the key masks of prompts that pad to different lengths."""

    caption: Tensor  # of all segments
    siglip: Tensor
    image: Tensor  # of the references and the picture
    joint: Tensor  # of the whole sequence
    caption_mask: Tensor | None  # bool [B, 1, 1, tokens]
    joint_mask: Tensor | None


def embed_siglip(model: S3DiT, features: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, hs, ws, C] -> [B, padded, D], with the reordering that the docstring above names."""
    mixed = features.to(dtype).permute(0, 3, 1, 2).reshape(features.shape[0], -1, features.shape[-1])
    return model.pad(model.siglip_embedder(mixed), model.siglip_pad_token)


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
