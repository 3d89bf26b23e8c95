"""Z-Image-Fun-Controlnet-Union: a second stack of blocks that reads a control picture and steers the S3-DiT.

Control tokens take the image tokens' place beside the caption in a copy of the sequence; each control block
adds its hint to the S3-DiT's own sequence after one of its blocks. Timestep, positions, captions and pad
tokens are the S3-DiT's. Facts: VideoX-Fun's ZImageControlTransformer2DModel, the code that trained the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ControlConfig
from ..model.attention import Attention
from ..model.memo import RunMemo, TimestepMemo
from ..model.s3dit import Block, Modulation, Prepared, S3DiT

Blocks = list[tuple[Block, Modulation]]

GREY = 0.5  # of pixels in [0, 1]: what the inpaint picture shows where it is to be repainted


class ControlBlock(Block):
    """A modulated block with projections: into the stack (the first only) and out of it, to a hint."""

    def __init__(self, first: bool, config: Any, attention: type, operations: Any, **place: Any) -> None:
        super().__init__(config, True, attention, operations, **place)
        if first:
            self.before_proj = operations.Linear(config.dim, config.dim, bias=True, **place)
        self.after_proj = operations.Linear(config.dim, config.dim, bias=True, **place)


class ControlNet(nn.Module):
    """The weights of one control; `Control` puts them to a picture. operations: as for S3DiT."""

    attention_class = Attention

    def __init__(
        self,
        config: ControlConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        place = {"device": device, "dtype": dtype}
        sizes = config.blocks
        self.config = config

        def stack(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                ControlBlock(index == 0, sizes, self.attention_class, operations, **place)
                for index in range(count)
            )

        embedder = operations.Linear(sizes.patch_size**2 * config.channels, sizes.dim, bias=True, **place)
        self.control_all_x_embedder = nn.ModuleDict({"2-1": embedder})  # their name: patch size, frame patch
        self.control_layers = stack(sizes.n_layers)
        if config.routing == "refiner":
            self.control_noise_refiner = stack(sizes.n_refiner_layers)
        elif config.routing == "tokens":
            self.control_noise_refiner = nn.ModuleList(
                Block(sizes, True, self.attention_class, operations, **place)
                for _ in range(sizes.n_refiner_layers)
            )
        else:  # the files have blocks for it, which were never trained
            self.control_noise_refiner = nn.ModuleList()

    def modulated(self, c: Tensor) -> tuple[Blocks, Blocks]:
        """c: [B, t_dim], the adaLN input -> the refiner's blocks and the layers, each with its modulation."""
        refiner, layers = (
            [(block, block.modulation(c)) for block in blocks]
            for blocks in (self.control_noise_refiner, self.control_layers)
        )
        return refiner, layers


@dataclass(eq=False)
class Control:
    """One control picture on one network. Keep it for a whole run: what depends on it alone is then made
    once.

    latent: [b, channels, H, W] as `control_latent` makes it, of the noisy latent's size; batches are whole
    repetitions of b.
    """

    network: ControlNet
    latent: Tensor
    strength: float = 1.0
    timestep: TimestepMemo = field(default_factory=TimestepMemo)

    def start(
        self,
        model: S3DiT,
        given: Prepared,
        x: Tensor,
        step: Tensor,
        memo: RunMemo,
        key: tuple[Hashable, ...],
        transformer_options: dict,
    ) -> ControlPath:
        """The way of this control through one forward of `model` on x, a latent of even sides.

        step: the timestep as the run's memo knows it; key: what sets this batch apart in the memo.
        Raises ValueError when network, latent and model do not fit.
        """
        if given.references is not None:
            raise ValueError("a control does not go with reference images: use the one or the other")
        self._check(model, x)
        places = self.network.config.places(model.config)
        hinted = {layer: block for block, layer in enumerate(places)}

        def embed() -> Tensor:
            latent = model.even(self.latent.to(x)).repeat(x.shape[0] // self.latent.shape[0], 1, 1, 1)
            tokens = self.network.control_all_x_embedder["2-1"](model.patchify(latent))
            return model.pad(tokens, model.x_pad_token)

        tokens = memo.once(("control", self, *x.shape, *key), embed)
        blocks = self.timestep.once(
            step, (x.shape[0], x.dtype, x.device), lambda: self.network.modulated(given.adaln_input)
        )
        routing = self.network.config.routing
        return ControlPath(routing, self.strength, hinted, tokens, blocks, given, transformer_options)

    def _check(self, model: S3DiT, x: Tensor) -> None:
        patch, channels = model.config.patch_size, self.network.config.channels
        found = tuple(side + -side % patch for side in self.latent.shape[-2:])
        if self.latent.shape[1] != channels or found != tuple(x.shape[-2:]):
            raise ValueError(
                f"control latent has shape {tuple(self.latent.shape)}, expected "
                f"[b, {channels}, {x.shape[-2]}, {x.shape[-1]}]"
            )
        if x.shape[0] % self.latent.shape[0]:
            raise ValueError(f"{self.latent.shape[0]} control pictures do not divide {x.shape[0]} latents")


class ControlPath:
    """Control tokens on their way beside one forward; hints are made when they are due, one at a time."""

    def __init__(
        self,
        routing: str,
        strength: float,
        places: dict[int, int],
        tokens: Tensor,
        blocks: tuple[Blocks, Blocks],
        given: Prepared,
        transformer_options: dict,
    ) -> None:
        refiner, self.layers = blocks
        # what refines control tokens on their own, and what refines them beside the image, with hints
        self.alone = refiner if routing == "tokens" else []
        self.beside = {"refiner": refiner, "layers": self.layers}.get(routing, [])
        self.strength, self.places, self.tokens, self.given = strength, places, tokens, given
        self.options = transformer_options

    def before_refiner(self, image: Tensor) -> None:
        """image: [B, N, D] as the noise refiner gets it."""
        if self.beside:
            self.tokens = self.beside[0][0].before_proj(self.tokens) + image

    def after_refiner(self, index: int, image: Tensor) -> Tensor:
        """image: [B, N, D] as noise refiner block `index` gives it -> the same with this control's hint."""
        if not self.beside:
            return image
        self._run(*self.beside[index], joint=False)
        image = self._steer(image, self.beside[index][0])
        if index == len(self.given.refiner_modulations) - 1:
            for block in self.beside[index + 1 :]:  # 2.0 has more of them than there are hints to give
                self._run(*block, joint=False)
        return image

    def before_layers(self, hidden: Tensor) -> None:
        """hidden: [B, S, D], caption and image tokens, as the first layer gets them."""
        for block in self.alone:
            self._run(*block, joint=False)
        tokens = torch.cat((self.given.caption, self.tokens), dim=1)
        self.tokens = self.layers[0][0].before_proj(tokens) + hidden

    def after_layer(self, index: int, hidden: Tensor) -> Tensor:
        """hidden: [B, S, D] as layer `index` gives it -> with the hint, where this control has one there."""
        if index not in self.places:
            return hidden
        block = self.layers[self.places[index]]
        self._run(*block, joint=True)
        return self._steer(hidden, block[0])

    def _run(self, block: Block, modulation: Modulation, joint: bool) -> None:
        given = self.given
        mask, freqs = (given.key_mask, given.freqs) if joint else (None, given.image_freqs)
        self.tokens = block(self.tokens, mask, freqs, modulation, transformer_options=self.options)

    def _steer(self, hidden: Tensor, block: ControlBlock) -> Tensor:
        return torch.add(hidden, block.after_proj(self.tokens), alpha=self.strength)


def control_latent(
    encode: Callable[[Tensor], Tensor],
    channels: int,
    picture: Tensor | None = None,
    inpaint: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """What a control reads, [B, channels, h, w]: the control picture's latent; with 33 channels also 1 where
    a pixel stays, and the latent of the picture to repaint, grey where it is repainted.

    encode: pixels [B, 3, H, W] in [0, 1] -> scaled latents [B, 16, h, w]; picture and inpaint: such pixels;
    mask: [B, 1, H, W], at least 0.5 where the inpaint picture is repainted. Without an inpaint picture all of
    it is repainted; without a control picture its latent is zero.
    """
    latent = None if picture is None else encode(picture)
    if latent is not None and channels == latent.shape[1]:
        return latent
    if inpaint is None or mask is None:
        inpaint = torch.full_like(picture[:1], GREY)
        mask = torch.ones_like(inpaint[:, :1])
    repaint = mask >= 0.5
    shown = encode(torch.where(repaint, GREY, inpaint))
    latent = torch.zeros_like(shown) if latent is None else latent
    keep = F.interpolate((~repaint).to(shown), shown.shape[-2:], mode="nearest")
    batch = max(part.shape[0] for part in (latent, keep, shown))
    return torch.cat([filled(part, batch) for part in (latent, keep, shown)], dim=1)


def filled(pictures: Tensor, count: int) -> Tensor:
    """pictures [b, ...] -> the first `count` of their endless repetition."""
    if pictures.shape[0] == count:
        return pictures
    return pictures[torch.arange(count, device=pictures.device) % pictures.shape[0]]
