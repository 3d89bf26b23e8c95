"""Z-Image-Fun-Controlnet-Union: a second stack of blocks that reads a control picture and steers the S3-DiT.

Control tokens take the image tokens' place beside the caption in a copy of the sequence; each control block
adds its hint to the S3-DiT's own sequence after one of its blocks. Timestep, positions, captions and pad
tokens are the S3-DiT's. Facts: VideoX-Fun's ZImageControlTransformer2DModel, the code that trained the
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ControlConfig
from ..model import operations
from ..model.attention import Attention
from ..model.hooks import BlockCall, BlockHook
from ..model.memo import RunMemo, StepMemo
from ..model.modulation import modulations
from ..model.s3dit import Block, S3DiT
from ..model.sequence import Prepared, Scales, Span, Time

Blocks = list[tuple[Block, Scales]]

GREY = 0.5  # of pixels in [0, 1]: what the inpaint picture shows where it is to be repainted


class ControlBlock(Block):
    """A modulated block with projections: into the stack (the first only) and out of it, to a hint."""

    def __init__(self, first: bool, config: Any, attention: type, operations: Any, **factory: Any) -> None:
        super().__init__(config, True, attention, operations, **factory)
        if first:
            self.before_proj = operations.Linear(config.dim, config.dim, bias=True, **factory)
        self.after_proj = operations.Linear(config.dim, config.dim, bias=True, **factory)


class ControlNet(nn.Module):
    """The weights of one control; `Control` puts them to a picture. operations: as for S3DiT."""

    attention_class = Attention

    def __init__(
        self,
        config: ControlConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = operations,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        sizes = config.blocks
        self.config = config

        def stack(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                ControlBlock(index == 0, sizes, self.attention_class, operations, **factory)
                for index in range(count)
            )

        embedder = operations.Linear(sizes.patch_size**2 * config.channels, sizes.dim, bias=True, **factory)
        self.control_all_x_embedder = nn.ModuleDict({"2-1": embedder})  # their name: patch size, frame patch
        self.control_layers = stack(sizes.n_layers)
        if config.routing == "refiner":
            self.control_noise_refiner = stack(sizes.n_refiner_layers)
        elif config.routing == "tokens":
            self.control_noise_refiner = nn.ModuleList(
                Block(sizes, True, self.attention_class, operations, **factory)
                for _ in range(sizes.n_refiner_layers)
            )
        else:  # the files have blocks for it, which were never trained
            self.control_noise_refiner = nn.ModuleList()

    def modulated(self, c: Tensor) -> tuple[Blocks, Blocks]:
        """c: [B, t_dim], the adaLN input -> the refiner's blocks and the layers, each with its modulation."""
        refiner, layers = (
            list(zip(blocks, modulations(blocks, c), strict=True))
            for blocks in (self.control_noise_refiner, self.control_layers)
        )
        return refiner, layers


@dataclass(eq=False)
class Control(BlockHook):
    """One control picture on one network; keep the object for a whole run.

    latent: [b, channels, H, W] as `control_latent` makes it, of the noisy latent's size; batches are whole
    repetitions of b. strength: 0 does nothing, 1 is as trained.
    """

    network: ControlNet
    latent: Tensor
    strength: float = 1.0
    scales: StepMemo = field(default_factory=StepMemo)

    capturable = False  # control tokens are state of one forward

    def prepare(self, model: S3DiT, x: Tensor, prepared: Prepared, time: Time, memo: RunMemo) -> BlockHook:
        """Raises ValueError when network, latent and model do not fit."""
        if not self.strength:
            return BlockHook()
        if prepared.references is not None:
            raise ValueError("a control does not go with reference images: use the one or the other")
        hinted = self.network.config.hint_layers(model.config)
        self._check(model, x)

        def embed() -> Tensor:
            latent = self.latent.to(x).repeat(x.shape[0] // self.latent.shape[0], 1, 1, 1)
            tokens = self.network.control_all_x_embedder["2-1"](model.patchify(latent))
            return model.pad(tokens, model.x_pad_token)

        tokens = memo.once((self, x.shape, x.dtype, x.device), embed)
        blocks = self.scales.once(time.embedding, (), lambda: self.network.modulated(time.embedding))
        return ControlPath(self, hinted, prepared.beside(tokens), blocks, prepared.join)

    def _check(self, model: S3DiT, x: Tensor) -> None:
        channels, height, width = self.network.config.channels, *x.shape[-2:]
        if self.latent.shape[1] != channels or model.patches(self.latent) != model.patches(x):
            raise ValueError(
                f"control latent has shape {tuple(self.latent.shape)}, expected "
                f"[b, {channels}, {height}, {width}]"
            )
        if x.shape[0] % self.latent.shape[0]:
            raise ValueError(f"{self.latent.shape[0]} control pictures do not divide {x.shape[0]} latents")


class ControlPath(BlockHook):
    """Control tokens on their way beside one forward; hints are made when they are due, one at a time."""

    capturable = False

    def __init__(
        self,
        control: Control,
        hinted: Sequence[int],
        tokens: Tensor,
        blocks: tuple[Blocks, Blocks],
        join: Callable[[Tensor], Tensor],
    ) -> None:
        refiner, self.layers = blocks
        routing = control.network.config.routing
        # what refines control tokens on their own, and what refines them beside the image, with hints
        self.alone = refiner if routing == "tokens" else []
        self.beside = {"refiner": refiner, "layers": self.layers}.get(routing, [])
        self.hinted = {layer: block for block, layer in enumerate(hinted)}
        self.strength, self.tokens, self.join = control.strength, tokens, join
        self.refined = 0  # how many of `beside` have run in the noise refiner
        self.spans: dict[str, Span] = {}

    def enter(self, stack: str, hidden: Tensor, span: Span) -> tuple[Tensor, Span]:
        self.spans[stack], mine = span, span.share.mine if span.share else _all
        if stack == "noise_refiner":
            self.tokens = mine(self.tokens)
            if self.beside:
                self.tokens = self.beside[0][0].before_proj(self.tokens) + hidden
        elif stack == "layers":
            self.tokens = self.layers[0][0].before_proj(mine(self.join(self.tokens))) + hidden
        return hidden, span

    def block(self, stack: str, index: int, call: BlockCall, hidden: Tensor, span: Span) -> Tensor:
        """The S3-DiT's block, with this control's hint where it has one there."""
        hidden = call(hidden, span)
        if stack == "noise_refiner" and self.beside:
            self._run(*self.beside[index], stack)
            self.refined = index + 1
            hidden = self._steer(hidden, self.beside[index][0])
        elif stack == "layers" and index in self.hinted:
            block = self.layers[self.hinted[index]]
            self._run(*block, stack)
            hidden = self._steer(hidden, block[0])
        return hidden

    def leave(self, stack: str, hidden: Tensor) -> Tensor:
        if stack == "noise_refiner":
            for block in [*self.beside[self.refined :], *self.alone]:  # 2.0 has more than there are hints
                self._run(*block, stack)
            if share := self.spans[stack].share:
                self.tokens = share.whole(self.tokens)
        return hidden

    def _run(self, block: Block, scales: Scales, stack: str) -> None:
        self.tokens = block(self.tokens, self.spans[stack], scales)

    def _steer(self, hidden: Tensor, block: ControlBlock) -> Tensor:
        return torch.add(hidden, block.after_proj(self.tokens), alpha=self.strength)


def _all(tokens: Tensor) -> Tensor:
    return tokens


def control_latent(
    encode: Callable[[Tensor], Tensor],
    channels: int,
    picture: Tensor | None = None,
    inpaint: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """What a control reads, [B, channels, h, w].

    It is the control picture's latent; with 33 channels also 1 where a pixel stays, and the latent of the
    picture to repaint, grey where it is repainted.
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
