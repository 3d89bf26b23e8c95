"""S3-DiT, the single-stream diffusion transformer of Z-Image (arXiv 2511.22699, section 3).

Caption and image tokens run through two small refiners of their own, then as one sequence through `layers`.
Shapes: B batch, L caption tokens (padded to a multiple of 32), N image tokens (likewise), S = L + N, D = dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import S3DiTConfig
from . import backends, operations
from .attention import Attention, fitted
from .fused import gated, look_for_kernels, scaled, swiglu
from .hooks import BlockHook, Options
from .memo import RunMemo
from .modulation import TimestepEmbedder, modulations
from .rope import PLAIN_GRID, Grid, caption_ids, image_ids, rope_table
from .sequence import Captions, Prepared, Scales, Span, Time, real_tokens

FACTOR = 8.0  # of the two that SwiGLU multiplies, at most, in float16


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x); in float16 of any scale a token, which the norm behind takes away."""

    def __init__(self, config: S3DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.w1 = operations.Linear(config.dim, config.ffn_dim, bias=False, **factory)
        self.w2 = operations.Linear(config.ffn_dim, config.dim, bias=False, **factory)
        self.w3 = operations.Linear(config.dim, config.ffn_dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float16:
            return self.w2(fitted(F.silu(self.w1(x)), FACTOR) * fitted(self.w3(x), FACTOR))
        return self.w2(swiglu(self.w1(x), self.w3(x)))


class Block(nn.Module):
    """Attention and feed-forward, each between two norms; with scales, multiplied before and gated after."""

    def __init__(
        self, config: S3DiTConfig, modulated: bool, attention: type, operations: Any, **factory: Any
    ) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return operations.RMSNorm(config.dim, eps=config.norm_eps, elementwise_affine=True, **factory)

        self.attention = attention(config, operations, **factory)
        self.feed_forward = FeedForward(config, operations, **factory)
        self.attention_norm1, self.attention_norm2 = norm(), norm()
        self.ffn_norm1, self.ffn_norm2 = norm(), norm()
        if modulated:
            projection = operations.Linear(config.t_dim, 4 * config.dim, bias=True, **factory)
            self.adaLN_modulation = nn.Sequential(projection)

    def modulation(self, c: Tensor) -> Scales:
        """c: [B, t_dim] -> what `forward` takes. No SiLU before this projection, unlike the final layer's."""
        return modulations([self], c)[0]

    def forward(self, x: Tensor, span: Span, scales: Scales | None = None) -> Tensor:
        """x: [B, S, D] -> [B, S, D]."""
        if scales is None:
            x = x + self.attention_norm2(self.attention(self.attention_norm1(x), span))
            return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))
        s = Scales(*scales) if span.share is None else span.share.scales(Scales(*scales))
        out = scaled(self.attention_norm1, x, s.attention, s.weights.attention1, s.folded[0])
        out = self.attention(out, span, s.weights)
        x = gated(x, self.attention_norm2, out, s.attention_gate, s.weights.attention2)
        del out  # as large as x, while the feed-forward needs the most
        out = scaled(self.ffn_norm1, x, s.feed_forward, s.weights.feed_forward1, s.folded[1])
        out = self.feed_forward(out)
        return gated(x, self.ffn_norm2, out, s.feed_forward_gate, s.weights.feed_forward2)


class FinalLayer(nn.Module):
    """Norm without weights, scale from the timestep, projection to patches."""

    def __init__(self, config: S3DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm_final = operations.LayerNorm(config.dim, elementwise_affine=False, eps=1e-6, **factory)
        self.linear = operations.Linear(config.dim, config.patch_features, bias=True, **factory)
        projection = operations.Linear(config.t_dim, config.dim, bias=True, **factory)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), projection)

    def modulation(self, c: Tensor) -> Tensor:
        """c: [B, t_dim] -> [B, 1, D]."""
        return 1 + self.adaLN_modulation(c).unsqueeze(1)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """x: [B, N, D], scale: [B, 1, D] -> [B, N, patch * patch * channels]."""
        if scale.shape[0] == 1:  # one weight for all tokens
            return self.linear(F.layer_norm(x, scale.shape[-1:], scale[0, 0], eps=self.norm_final.eps))
        return self.linear(self.norm_final(x) * scale)


class Condition(Protocol):
    """What a picture is made from beside noise. Keep one object for a run: it is the key of what is kept."""

    def prepare(self, model: S3DiT, x: Tensor, hooks: Sequence[BlockHook] = ()) -> Prepared:
        """x: [B, C, H, W], of which only shape, dtype and device count."""


class S3DiT(nn.Module):
    """Predicts the flow velocity, noise - clean, of a latent.

    operations: where Linear, RMSNorm and LayerNorm come from; the host's own stream and cast their weights.
    """

    attention_class = Attention
    graphs: Any = None  # acceleration.graphs.Graphs

    def __init__(
        self,
        config: S3DiTConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = operations,
    ) -> None:
        super().__init__()
        self.config, self.dtype, factory = config, dtype, {"device": device, "dtype": dtype}

        def blocks(count: int, modulated: bool) -> nn.ModuleList:
            return nn.ModuleList(
                Block(config, modulated, self.attention_class, operations, **factory) for _ in range(count)
            )

        def embedder(width: int) -> nn.Sequential:
            return nn.Sequential(
                operations.RMSNorm(width, eps=config.norm_eps, elementwise_affine=True, **factory),
                operations.Linear(width, config.dim, bias=True, **factory),
            )

        self.x_embedder = operations.Linear(config.patch_features, config.dim, bias=True, **factory)
        self.noise_refiner = blocks(config.n_refiner_layers, modulated=True)
        self.context_refiner = blocks(config.n_refiner_layers, modulated=False)
        self.t_embedder = TimestepEmbedder(config, operations, **factory)
        self.cap_embedder = embedder(config.cap_feat_dim)
        self.layers = blocks(config.n_layers, modulated=True)
        self.final_layer = FinalLayer(config, operations, **factory)
        self.x_pad_token = nn.Parameter(torch.empty(1, config.dim, **factory))
        self.cap_pad_token = nn.Parameter(torch.empty(1, config.dim, **factory))
        if config.siglip_feat_dim is not None:
            self.siglip_embedder = embedder(config.siglip_feat_dim)
            self.siglip_refiner = blocks(config.n_refiner_layers, modulated=False)
            self.siglip_pad_token = nn.Parameter(torch.empty(1, config.dim, **factory))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | None = None,
        num_tokens: Sequence[int] | int | None = None,
        attention_mask: Tensor | None = None,
        transformer_options: dict = {},
        *,
        condition: Condition | None = None,
        hooks: Sequence[BlockHook] = (),
        memo: RunMemo | None = None,
    ) -> Tensor:
        """The velocity noise - clean.

        x: [B, C, H, W] noisy latent; sides that are no multiple of the patch size wrap around.
        timesteps: [B] sigma in [0, 1]; 1 is pure noise.
        context: [B, L, cap_feat_dim] caption features, right-padded; None with a `condition`.
        num_tokens: real tokens of each caption, B numbers; one number, as hosts pass it, says nothing more.
        attention_mask: bool [B, L] of real tokens, in place of num_tokens; None: all are real.
        transformer_options: handed to attention as they are.
        condition: what the picture is made from, in place of context: Prompt, References or Regions.
        hooks: what goes on around the blocks, such as Control; the first is the outermost.
        memo: keeps what a run repeats for one `condition` object and for one `timesteps` tensor.
        Returns [B, C, H, W]. Raises ValueError when widths or counts do not fit the weights.
        """
        if (context is None) == (condition is None) or (memo and not condition):
            raise ValueError("give either context, the caption features, or, with a memo always, a condition")
        if condition is None:
            condition = Prompt(Captions.of(context, num_tokens, attention_mask))
        if transformer_options:
            hooks = (Options(transformer_options), *hooks)
        given = self.prepare(x, timesteps, condition, hooks, memo or RunMemo())
        out = self.graphs.step(self, x, timesteps, *given) if self.graphs else None
        return self.step(x, *given) if out is None else out

    def prepare(
        self, x: Tensor, timesteps: Tensor, condition: Condition, hooks: Sequence[BlockHook], memo: RunMemo
    ) -> tuple[Prepared, Time, list[BlockHook]]:
        """What `step` takes beside x: all that does not depend on the latent's values."""
        kind = (x.dtype, x.device)
        look_for_kernels(x.device)
        backends.look_at(x.device)
        prepared = memo.once((condition, x.shape, *kind), lambda: condition.prepare(self, x, hooks))
        time = memo.time(timesteps, kind, lambda: self.time(timesteps, x.dtype))
        if prepared.clean is not None:
            zero = torch.zeros(1, device=x.device)
            time = time.beside(memo.once(("clean", *kind), lambda: self.time(zero, x.dtype)), prepared)
        return prepared, time, [hook.prepare(self, x, prepared, time, memo) for hook in hooks]

    def step(self, x: Tensor, prepared: Prepared, time: Time, hooks: Sequence[BlockHook] = ()) -> Tensor:
        """x [B, C, H, W] -> velocity: tensors in, tensor out."""
        rows, columns = self.patches(x)

        def image() -> Tensor:
            tokens = prepared.beside(self.embed_image(x))
            return self.run("noise_refiner", tokens, prepared.image, time.noise_refiner, hooks)

        # Nested on purpose: a local name would keep [B, S, D] alive during the layers.
        hidden = self.run("layers", prepared.join(image()), prepared.joint, time.layers, hooks)
        patches = prepared.by_latent(self.final_layer(prepared.picture(hidden, rows * columns), time.final))
        velocity = self.unpatchify(patches, rows, columns)[..., : x.shape[-2], : x.shape[-1]]
        return -velocity  # patches predict clean - noise

    def run(
        self,
        stack: str,
        hidden: Tensor,
        span: Span,
        scales: Sequence[Scales] | None = None,
        hooks: Sequence[BlockHook] = (),
    ) -> Tensor:
        """Tokens [B, S, D] through all blocks of a stack, with the hooks around each."""
        for hook in hooks:
            hidden, span = hook.enter(stack, hidden, span)
        for index, block in enumerate(getattr(self, stack)):
            call = partial(block, scales=None if scales is None else scales[index])
            for hook in reversed(hooks):
                call = partial(hook.block, stack, index, call)
            hidden = call(hidden, span)
        for hook in reversed(hooks):
            hidden = hook.leave(stack, hidden)
        return hidden

    def time(self, timesteps: Tensor, dtype: torch.dtype) -> Time:
        """timesteps: [B] sigma -> the modulation of every block and of the final layer."""
        c = self.t_embedder((1.0 - timesteps) * self.config.t_scale, dtype)  # [B, t_dim]

        refiners = len(self.noise_refiner)
        scales = modulations([*self.noise_refiner, *self.layers], c)
        return Time(c, scales[:refiners], scales[refiners:], self.final_layer.modulation(c))

    def embed_text(self, captions: Captions, length: int, dtype: torch.dtype) -> Tensor:
        """-> tokens [B, length, D], learned ones after each sample's real tokens."""
        tokens = self.cap_embedder(captions.features[:, :length].to(dtype))
        tokens = self.pad(tokens, self.cap_pad_token, length)
        if min(captions.lengths) < captions.features.shape[1]:
            real = real_tokens(captions.lengths, length, tokens.device)
            tokens = torch.where(real[..., None], tokens, self.cap_pad_token.to(tokens))
        return tokens

    def embed_image(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> tokens [B, N, D]."""
        return self.pad(self.x_embedder(self.patchify(x)), self.x_pad_token)

    def patches(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of patches of a latent [B, C, H, W]."""
        return tuple(math.ceil(side / self.config.patch_size) for side in x.shape[-2:])

    def even(self, x: Tensor) -> Tensor:
        """Incomplete patches of a latent [B, C, H, W] wrap around, as in the host."""
        p = self.config.patch_size
        return F.pad(x, (0, -x.shape[-1] % p, 0, -x.shape[-2] % p), mode="circular")

    def patchify(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, rows * columns, patch * patch * C], channel fastest."""
        p = self.config.patch_size
        return rearrange(self.even(x), "b c (rows p) (columns q) -> b (rows columns) (p q c)", p=p, q=p)

    def unpatchify(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """[B, rows * columns, patch * patch * C] -> [B, C, rows * patch, columns * patch]."""
        p, pattern = self.config.patch_size, "b (rows columns) (p q c) -> b c (rows p) (columns q)"
        return rearrange(patches, pattern, rows=rows, columns=columns, p=p, q=p)

    def padded(self, length: int) -> int:
        return length + -length % self.config.pad_multiple

    def pad(self, tokens: Tensor, pad_token: Tensor, length: int | None = None) -> Tensor:
        """tokens [B, L, D] and learned ones up to `length`, else to the next multiple."""
        missing = (length or self.padded(tokens.shape[1])) - tokens.shape[1]
        if missing <= 0:
            return tokens
        return torch.cat((tokens, pad_token.to(tokens).expand(tokens.shape[0], missing, -1)), dim=1)

    def rope_table(self, ids: Tensor) -> Tensor:
        """ids: [..., S, 3] -> [..., S, 1, head_dim / 2, 2, 2]."""
        return rope_table(ids, self.config.axes_dims, self.config.rope_theta)

    def check_widths(self, x: Tensor, captions: Captions) -> None:
        """Raises ValueError when latent or captions are of another model."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(
                f"latent has shape {tuple(x.shape)}, this model takes [B, {self.config.in_channels}, H, W]"
            )
        width = captions.features.shape[-1]
        if width != self.config.cap_feat_dim:
            raise ValueError(
                f"caption features are {width} wide, this model takes {self.config.cap_feat_dim}: "
                "use the text encoder that belongs to it (Qwen3-4B, 2560, for Z-Image)"
            )


@dataclass(frozen=True, eq=False)
class Prompt:
    """Captions alone. Captions of a batch may differ in length; each sample's image follows its own."""

    captions: Captions
    grid: Grid = PLAIN_GRID

    def prepare(self, model: S3DiT, x: Tensor, hooks: Sequence[BlockHook] = ()) -> Prepared:
        captions = self.captions.batched(x.shape[0])
        model.check_widths(x, captions)
        rows, columns = model.patches(x)
        padded = [model.padded(length) for length in captions.lengths]
        longest, image_length = max(padded), model.padded(rows * columns)
        frames = padded if min(padded) != longest else [longest]  # one table serves equal samples
        text_freqs = model.rope_table(caption_ids(longest, x.device)[None])
        image = [image_ids(end + 1, rows, columns, image_length, self.grid, x.device) for end in frames]
        image_freqs = model.rope_table(torch.stack(image))
        seen = joint_seen = None
        if len(frames) > 1:
            text_freqs = text_freqs.expand(len(frames), *text_freqs.shape[1:])
            seen = real_tokens(padded, longest, x.device)[:, None, None]
            joint_seen = F.pad(seen, (0, image_length), value=True)
        tokens = model.embed_text(captions, longest, x.dtype)
        text = model.run("context_refiner", tokens, Span(text_freqs, seen), hooks=hooks)
        joint = Span(torch.cat((text_freqs, image_freqs), dim=1), joint_seen)
        return Prepared(text, Span(image_freqs), joint)
