"""S3-DiT, the single-stream diffusion transformer of Z-Image (arXiv 2511.22699, section 3).

Caption and image tokens run through two small refiners of their own, then as one sequence through `layers`.
Shapes: B batch, L caption tokens (padded to a multiple of 32), N image tokens (likewise), S = L + N, D = dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditions import references as omni
from ..conditions import regions as regional
from ..conditions.references import ByToken, References, times
from ..config import S3DiTConfig
from .attention import Attention
from .memo import RunMemo
from .rope import caption_ids, image_ids, rope_table

if TYPE_CHECKING:
    from ..conditions.control import Control, ControlPath
    from ..conditions.regions import Region

Factor = Tensor | ByToken  # [B, 1, D], or one for clean and one for noisy tokens
# scale and gate of attention, scale and gate of feed-forward
Modulation = tuple[Factor, Factor, Factor, Factor]


def in_range(x: Tensor) -> Tensor:
    """float16 overflows in three places, each before a norm that takes the scale away again: what became
    infinite there is brought back to the largest number.
    """
    if x.dtype != torch.float16:
        return x
    largest = torch.finfo(torch.float16).max
    return torch.nan_to_num(x, nan=0.0, posinf=largest, neginf=-largest)


class TimestepEmbedder(nn.Module):
    """Sigma's complement t in [0, 1000] -> the adaLN input. The sinusoid is float32, as in the reference."""

    FREQUENCIES = 128
    MAX_PERIOD = 10000

    def __init__(self, config: S3DiTConfig, operations: Any, **place: Any) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(2 * self.FREQUENCIES, config.t_hidden, bias=True, **place),
            nn.SiLU(),
            operations.Linear(config.t_hidden, config.t_dim, bias=True, **place),
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t: [B] -> [B, t_dim] in dtype."""
        steps = torch.arange(self.FREQUENCIES, dtype=torch.float32, device=t.device)
        angle = t.float()[:, None] * torch.exp(-math.log(self.MAX_PERIOD) * steps / self.FREQUENCIES)
        return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1).to(dtype))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, config: S3DiTConfig, operations: Any, **place: Any) -> None:
        super().__init__()
        self.w1 = operations.Linear(config.dim, config.ffn_dim, bias=False, **place)
        self.w2 = operations.Linear(config.ffn_dim, config.dim, bias=False, **place)
        self.w3 = operations.Linear(config.dim, config.ffn_dim, bias=False, **place)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(in_range(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Attention and feed-forward, each between two norms; with modulation, scaled before and tanh-gated
    after.
    """

    def __init__(
        self, config: S3DiTConfig, modulated: bool, attention: type, operations: Any, **place: Any
    ) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return operations.RMSNorm(config.dim, eps=config.norm_eps, elementwise_affine=True, **place)

        self.attention = attention(config, operations, **place)
        self.feed_forward = FeedForward(config, operations, **place)
        self.attention_norm1, self.attention_norm2 = norm(), norm()
        self.ffn_norm1, self.ffn_norm2 = norm(), norm()
        if modulated:
            self.adaLN_modulation = nn.Sequential(
                operations.Linear(config.t_dim, 4 * config.dim, bias=True, **place)
            )

    def modulation(self, c: Tensor) -> Modulation:
        """c: [B, t_dim] -> what `forward` takes. There is no SiLU before this projection, unlike the final
        layer's.
        """
        scale_a, gate_a, scale_m, gate_m = self.adaLN_modulation(c).unsqueeze(1).chunk(4, dim=-1)
        return 1 + scale_a, gate_a.tanh(), 1 + scale_m, gate_m.tanh()

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        freqs: Tensor,
        modulation: Modulation | None = None,
        transformer_options: dict = {},
    ) -> Tensor:
        """x: [B, S, D] -> [B, S, D]."""
        if modulation is None:
            out = self.attention(
                self.attention_norm1(x), mask, freqs, transformer_options=transformer_options
            )
            x = x + self.attention_norm2(in_range(out))
            return x + self.ffn_norm2(in_range(self.feed_forward(self.ffn_norm1(x))))
        scale_a, gate_a, scale_m, gate_m = modulation
        out = self.attention(
            times(self.attention_norm1(x), scale_a), mask, freqs, transformer_options=transformer_options
        )
        x = x + times(self.attention_norm2(in_range(out)), gate_a)
        del out  # as large as x, while the feed-forward needs the most
        return x + times(
            self.ffn_norm2(in_range(self.feed_forward(times(self.ffn_norm1(x), scale_m)))), gate_m
        )


class FinalLayer(nn.Module):
    """Norm without weights, scale from the timestep, projection to patches."""

    def __init__(self, config: S3DiTConfig, operations: Any, **place: Any) -> None:
        super().__init__()
        self.norm_final = operations.LayerNorm(config.dim, elementwise_affine=False, eps=1e-6, **place)
        self.linear = operations.Linear(
            config.dim, config.patch_size**2 * config.in_channels, bias=True, **place
        )
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), operations.Linear(config.t_dim, config.dim, bias=True, **place)
        )

    def modulation(self, c: Tensor) -> Tensor:
        return 1 + self.adaLN_modulation(c).unsqueeze(1)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """x: [B, N, D], scale: [B, 1, D] -> [B, N, patch * patch * channels]."""
        return self.linear(self.norm_final(x) * scale)


class Prepared(NamedTuple):
    """What a forward knows before it looks at the latent's values."""

    caption: Tensor  # [B, L, D] refined
    image_freqs: Tensor  # rope table of the N image tokens, and of the references' before them
    freqs: Tensor  # rope table of all S tokens
    # bool [B, 1, 1, S], where padded caption lengths differ in a batch; with regions added [1 or B, 1, S, S]
    key_mask: Tensor | None
    adaln_input: Tensor  # [B, t_dim]
    refiner_modulations: list[Modulation]
    layer_modulations: list[Modulation]
    final_scale: Tensor  # [B, 1, D]
    clean: Tensor | None = None  # with reference images, [B, K, D]: refined tokens that come before theirs
    references: Tensor | None = None  # [B, R, D] embedded, to be refined together with the image
    controls: Sequence[ControlPath] = ()  # what each of them adds is summed where it is added

    @property
    def start(self) -> int:
        """How many tokens come before the image's."""
        parts = (self.clean, self.references, self.caption)
        return sum(part.shape[1] for part in parts if part is not None)


class S3DiT(nn.Module):
    """Predicts the flow velocity, noise - clean, of a latent.

    operations: where Linear, RMSNorm and LayerNorm come from; the host passes its own, which stream and cast
    weights.
    """

    attention_class = Attention

    def __init__(
        self,
        config: S3DiTConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        place = {"device": device, "dtype": dtype}
        self.config = config
        self.dtype = dtype

        def blocks(count: int, modulated: bool) -> nn.ModuleList:
            return nn.ModuleList(
                Block(config, modulated, self.attention_class, operations, **place) for _ in range(count)
            )

        self.x_embedder = operations.Linear(
            config.patch_size**2 * config.in_channels, config.dim, bias=True, **place
        )
        self.noise_refiner = blocks(config.n_refiner_layers, modulated=True)
        self.context_refiner = blocks(config.n_refiner_layers, modulated=False)
        self.t_embedder = TimestepEmbedder(config, operations, **place)
        self.cap_embedder = nn.Sequential(
            operations.RMSNorm(config.cap_feat_dim, eps=config.norm_eps, elementwise_affine=True, **place),
            operations.Linear(config.cap_feat_dim, config.dim, bias=True, **place),
        )
        self.layers = blocks(config.n_layers, modulated=True)
        self.final_layer = FinalLayer(config, operations, **place)
        self.x_pad_token = nn.Parameter(torch.empty(1, config.dim, **place))
        self.cap_pad_token = nn.Parameter(torch.empty(1, config.dim, **place))
        if config.siglip_feat_dim is not None:
            self.siglip_embedder = nn.Sequential(
                operations.RMSNorm(
                    config.siglip_feat_dim, eps=config.norm_eps, elementwise_affine=True, **place
                ),
                operations.Linear(config.siglip_feat_dim, config.dim, bias=True, **place),
            )
            self.siglip_refiner = blocks(config.n_refiner_layers, modulated=False)
            self.siglip_pad_token = nn.Parameter(torch.empty(1, config.dim, **place))

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        num_tokens: Any = None,
        attention_mask: Tensor | None = None,
        transformer_options: dict = {},
        **kwargs: Any,
    ) -> Tensor:
        """The velocity noise - clean.

        x: [B, C, H, W] noisy latent; timesteps: [B] sigma in [0, 1], 1 is pure noise; context:
        [B, L, cap_feat_dim], right-padded to the longest; attention_mask: bool [B, L] of real caption
        tokens, None when all are.
        num_tokens: a tuple of each sample's real caption tokens says the same as the mask without a wait for
        the GPU; the single number that hosts pass is not needed. run_memo=[RunMemo, ...] keeps what the run
        repeats. controls=[Control, ...] steer the picture. regions=[Region, ...] have captions of their own.
        Omni weights also take reference images, under the names of ComfyUI's NextDiT: ref_latents, n of
        [B, C, h, w], clean and scaled like x; ref_contexts, n + 1 of [B, L, cap_feat_dim], the features of
        `split_prompt`'s other segments (`context` is that of the prompt, the last but one); siglip_feats, n
        of [B, hs, ws, siglip_feat_dim] or None. Each may have a batch of 1.
        Returns [B, C, H, W]. Raises ValueError when widths do not fit the weights.
        """
        return self.velocity(x, timesteps, context, num_tokens, attention_mask, transformer_options, **kwargs)

    def velocity(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        num_tokens: Any = None,
        attention_mask: Tensor | None = None,
        transformer_options: dict = {},
        run_memo: list[RunMemo] | None = None,
        ref_latents: Sequence[Tensor] = (),
        ref_contexts: Sequence[Tensor | None] = (),
        siglip_feats: Sequence[Tensor | None] | None = None,
        controls: Sequence[Control] = (),
        regions: Sequence[Region] = (),
        **kwargs: Any,
    ) -> Tensor:
        memo = run_memo or [RunMemo()]
        references = (
            References.of(self.config, ref_latents, ref_contexts, siglip_feats) if ref_latents else None
        )
        given = self.prepare(
            x, timesteps, context, num_tokens, attention_mask, transformer_options, memo, references, regions
        )
        height, width = x.shape[-2:]
        x = self.even(x)
        if controls:
            paths = self.start_controls(controls, given, x, timesteps, transformer_options, memo)
            given = given._replace(controls=paths)
        rows, columns = (side // self.config.patch_size for side in x.shape[-2:])
        # tokens on their way get no name here: each would stay in memory while the layers run
        hidden = self.joint(
            self.sequence(given, self.embed_image(x, given, transformer_options)),
            given,
            x,
            transformer_options,
        )  # [B, S, D]
        start = given.start
        patches = self.final_layer(hidden[:, start : start + rows * columns], given.final_scale)
        return -self.unpatchify(patches, rows, columns)[..., :height, :width]  # they predict clean - noise

    def embed_image(self, x: Tensor, given: Prepared, transformer_options: dict) -> Tensor:
        """[B, C, H, W] of even sides -> image tokens [B, N, D], after those of references [B, R + N, D]."""
        tokens = self.pad(self.x_embedder(self.patchify(x)), self.x_pad_token)
        if given.references is not None:
            tokens = torch.cat((given.references, tokens), dim=1)
        return self.refine_image(tokens, given, x, transformer_options)

    @staticmethod
    def sequence(given: Prepared, image: Tensor) -> Tensor:
        """All tokens in one [B, S, D]: caption, image; with references the clean ones before these."""
        if given.references is None:
            return torch.cat((given.caption, image), dim=1)
        count = given.references.shape[1]
        return torch.cat((given.clean, image[:, :count], given.caption, image[:, count:]), dim=1)

    def refine_image(self, image: Tensor, given: Prepared, x: Tensor, transformer_options: dict) -> Tensor:
        """Image tokens [B, N, D] through the noise refiner; x is what the host's patches may ask for."""
        for control in given.controls:
            control.before_refiner(image)
        for index, block in enumerate(self.noise_refiner):
            modulation = given.refiner_modulations[index]
            image = block(image, None, given.image_freqs, modulation, transformer_options=transformer_options)
            for control in given.controls:
                image = control.after_refiner(index, image)
        return image

    def joint(self, hidden: Tensor, given: Prepared, x: Tensor, transformer_options: dict) -> Tensor:
        """Caption and image tokens [B, S, D] through the layers."""
        for control in given.controls:
            control.before_layers(hidden)
        for index, block in enumerate(self.layers):
            modulation = given.layer_modulations[index]
            hidden = block(
                hidden, given.key_mask, given.freqs, modulation, transformer_options=transformer_options
            )
            for control in given.controls:
                hidden = control.after_layer(index, hidden)
        return hidden

    def prepare(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        num_tokens: Any,
        attention_mask: Tensor | None,
        transformer_options: dict,
        run_memo: list[RunMemo],
        references: References | None = None,
        regions: Sequence[Region] = (),
    ) -> Prepared:
        """All that depends on prompt, size and timestep only, from the memo where the run has it already."""
        self._check_widths(x, context)
        if regions and references is not None:
            raise ValueError("prompts for regions and reference images cannot go together")
        memo, *others = run_memo
        rows, columns = (math.ceil(side / self.config.patch_size) for side in x.shape[-2:])
        key = (*others, x.shape[0], x.dtype, x.device)
        rope_options = transformer_options.get("rope_options") or {}
        place = (rows, columns, *sorted(rope_options.items()), *key)
        lengths = memo.once(
            ("lengths", *key), lambda: self._caption_lengths(context, num_tokens, attention_mask)
        )
        # the host's tensor of this step is the same one for every conditioning
        step = transformer_options.get("sigmas", timesteps)
        modulations = memo.timestep.once(
            step, (x.shape[0], x.dtype, x.device), lambda: self.modulations(timesteps, x.dtype)
        )
        if references is not None:
            return Prepared(
                *omni.prepare(
                    self, references, x, context, lengths, rows, columns, transformer_options,
                    memo, place, key, modulations,
                )
            )  # fmt: skip
        if regions:
            return Prepared(
                *regional.prepare(
                    self, regions, x, context, lengths, transformer_options, memo, place, modulations
                )
            )
        caption_freqs, image_freqs, caption_mask = memo.once(
            ("positions", *place), lambda: self._positions(lengths, rows, columns, rope_options, x.device)
        )
        freqs, key_mask = memo.once(
            ("joint positions", *place),
            lambda: self._joint_positions(caption_freqs, image_freqs, caption_mask),
        )
        caption = memo.once(
            ("caption", *key),
            lambda: self.refine_caption(
                context, lengths, caption_freqs, caption_mask, x.dtype, transformer_options
            ),
        )
        return Prepared(caption, image_freqs, freqs, key_mask, *modulations)

    def start_controls(
        self,
        controls: Sequence[Control],
        given: Prepared,
        x: Tensor,
        timesteps: Tensor,
        transformer_options: dict,
        run_memo: list[RunMemo],
    ) -> list[ControlPath]:
        """The controls of one forward on x, a latent of even sides; those without strength stay out."""
        memo, *others = run_memo
        step = transformer_options.get("sigmas", timesteps)
        return [
            control.start(self, given, x, step, memo, tuple(others), transformer_options)
            for control in controls
            if control.strength
        ]

    def modulations(
        self, timesteps: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, list[Modulation], list[Modulation], Tensor]:
        """timesteps: [B] sigma -> the adaLN input, the modulation of every noise refiner block and of every
        layer, and the final scale.
        """
        c = self.t_embedder((1.0 - timesteps) * self.config.t_scale, dtype)  # [B, t_dim]
        refiner, layers = (
            [block.modulation(c) for block in blocks] for blocks in (self.noise_refiner, self.layers)
        )
        return c, refiner, layers, self.final_layer.modulation(c)

    def refine_caption(
        self,
        context: Tensor,
        lengths: list[int],
        freqs: Tensor,
        key_mask: Tensor | None,
        dtype: torch.dtype,
        transformer_options: dict = {},
    ) -> Tensor:
        """context [B, L', cap_feat_dim] -> refined caption tokens [B, L, D]; independent of the image and of
        time.
        """
        caption = self.embed_caption(context, lengths, freqs.shape[1], dtype)
        return self.refine(self.context_refiner, caption, key_mask, freqs, transformer_options)

    def embed_caption(self, context: Tensor, lengths: list[int], padded: int, dtype: torch.dtype) -> Tensor:
        """context [B, L', cap_feat_dim] -> tokens [B, padded, D], learned ones after each sample's length."""
        caption = self.cap_embedder(context[:, :padded].to(dtype))
        caption = self.pad(caption, self.cap_pad_token, padded)
        if min(lengths) < context.shape[1]:  # learned tokens replace each sample's own padding
            real = (
                torch.arange(padded, device=caption.device)
                < torch.tensor(lengths, device=caption.device)[:, None]
            )
            caption = torch.where(real[..., None], caption, self.cap_pad_token.to(caption))
        return caption

    @staticmethod
    def refine(
        blocks: nn.ModuleList,
        tokens: Tensor,
        key_mask: Tensor | None,
        freqs: Tensor,
        transformer_options: dict,
    ) -> Tensor:
        """Tokens [B, L, D] through blocks without modulation."""
        for block in blocks:
            tokens = block(tokens, key_mask, freqs, transformer_options=transformer_options)
        return tokens

    def even(self, x: Tensor) -> Tensor:
        """Sides that are no multiple of the patch size wrap around, as in the host."""
        p = self.config.patch_size
        return F.pad(x, (0, -x.shape[-1] % p, 0, -x.shape[-2] % p), mode="circular")

    def patchify(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, rows * columns, patch * patch * C], channel fastest."""
        p = self.config.patch_size
        x = x.unflatten(-1, (-1, p)).unflatten(-3, (-1, p))  # [B, C, rows, p, columns, p]
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse of patchify: [B, rows * columns, patch * patch * C] -> [B, C, rows * patch, columns *
        patch].
        """
        p = self.config.patch_size
        x = patches.unflatten(-1, (p, p, -1)).unflatten(1, (rows, columns))  # [B, rows, columns, p, p, C]
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def _positions(
        self, lengths: list[int], rows: int, columns: int, rope_options: dict, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rope tables [1 or B, L, ...] and [1 or B, N, ...], and the key mask [B, 1, 1, L] of mixed lengths,
        else None.
        """
        padded = [self.padded(length) for length in lengths]
        longest = max(padded)
        image_padded = self.padded(rows * columns)
        frames = padded if min(padded) != longest else [longest]  # one table serves equal samples

        def table(ids: Tensor) -> Tensor:
            return rope_table(ids, self.config.axes_dims, self.config.rope_theta)

        caption = table(caption_ids(longest, device)[None])
        image = [image_ids(frame + 1, rows, columns, image_padded, rope_options, device) for frame in frames]
        image_table = table(torch.stack(image))
        if len(frames) == 1:
            return caption, image_table, None
        seen = torch.arange(longest, device=device) < torch.tensor(padded, device=device)[:, None]
        return caption.expand(len(frames), *caption.shape[1:]), image_table, seen[:, None, None]

    @staticmethod
    def _joint_positions(
        caption: Tensor, image: Tensor, caption_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        mask = caption_mask
        if mask is not None:
            mask = F.pad(mask, (0, image.shape[1]), value=True)
        return torch.cat((caption, image), dim=1), mask

    def padded(self, length: int) -> int:
        return length + -length % self.config.pad_multiple

    def pad(self, tokens: Tensor, pad_token: Tensor, length: int | None = None) -> Tensor:
        """tokens [B, L, D] and learned ones up to `length`, else to the next multiple."""
        missing = (length or self.padded(tokens.shape[1])) - tokens.shape[1]
        if missing <= 0:
            return tokens
        return torch.cat((tokens, pad_token.to(tokens).expand(tokens.shape[0], missing, -1)), dim=1)

    @staticmethod
    def _caption_lengths(context: Tensor, num_tokens: Any, attention_mask: Tensor | None) -> list[int]:
        batch, longest = context.shape[:2]
        if isinstance(num_tokens, tuple):
            lengths = list(num_tokens)
        elif attention_mask is not None:
            lengths = [int(n) for n in attention_mask.bool().sum(dim=-1).clamp(min=1).tolist()]
        else:
            lengths = [longest]
        return lengths if len(lengths) == batch else lengths[:1] * batch

    def _check_widths(self, x: Tensor, context: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise ValueError(
                f"latent has shape {tuple(x.shape)}, this model takes [B, {self.config.in_channels}, H, W]"
            )
        if context.shape[-1] != self.config.cap_feat_dim:
            raise ValueError(
                f"caption features are {context.shape[-1]} wide, this model takes "
                f"{self.config.cap_feat_dim}: "
                "use the text encoder that belongs to it (Qwen3-4B, 2560, for Z-Image)"
            )
        if context.shape[0] != x.shape[0]:
            raise ValueError(f"{context.shape[0]} captions for {x.shape[0]} latents")
