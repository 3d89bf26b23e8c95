"""The Flux-style autoencoder: pixels to 16 latent channels at an eighth of the size, and back.

Parameter names are those of the BFL / ComfyUI single file `ae.safetensors`. Widths come from
`AutoencoderConfig`, so that the real 84 M one and the narrow one of `models/nano` are the same class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import AutoencoderConfig
from . import operations

NORM_EPS = 1e-6


def _norm(channels: int, groups: int, **where) -> nn.GroupNorm:
    if channels % groups:
        raise ValueError(f"{channels} channels cannot be split into {groups} normalisation groups")
    return operations.GroupNorm(groups, channels, eps=NORM_EPS, **where)


def _silu(x: Tensor) -> Tensor:
    """Without gradients it overwrites x: give it a temporary."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions around a shortcut, [B,c_in,H,W] -> [B,c_out,H,W]."""

    def __init__(self, c_in: int, c_out: int, groups: int, **where):
        super().__init__()
        self.norm1 = _norm(c_in, groups, **where)
        self.conv1 = operations.Conv2d(c_in, c_out, 3, padding=1, **where)
        self.norm2 = _norm(c_out, groups, **where)
        self.conv2 = operations.Conv2d(c_out, c_out, 3, padding=1, **where)
        if c_in != c_out:
            self.nin_shortcut = operations.Conv2d(c_in, c_out, 1, **where)

    def forward(self, x: Tensor) -> Tensor:
        # Nested on purpose: a local name would keep the first half's result alive during the second.
        h = self.conv2(_silu(self.norm2(self.conv1(_silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class PixelAttention(nn.Module):
    """Self-attention over all positions with one head as wide as the channels, [B,C,H,W] -> [B,C,H,W]."""

    def __init__(self, channels: int, groups: int, **where):
        super().__init__()
        self.norm = _norm(channels, groups, **where)
        self.q = operations.Conv2d(channels, channels, 1, **where)
        self.k = operations.Conv2d(channels, channels, 1, **where)
        self.v = operations.Conv2d(channels, channels, 1, **where)
        self.proj_out = operations.Conv2d(channels, channels, 1, **where)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            proj(h).flatten(2).transpose(1, 2).unsqueeze(1) for proj in (self.q, self.k, self.v)
        )  # [B,1,HW,C]
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)  # [B,HW,C]
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Strided convolution that pads right and bottom only, [B,C,H,W] -> [B,C,H//2,W//2]."""

    def __init__(self, channels: int, **where):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, **where)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution, [B,C,H,W] -> [B,C,2H,2W]."""

    def __init__(self, channels: int, **where):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **where)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _mid(channels: int, groups: int, **where) -> nn.Module:
    mid = nn.Module()
    mid.block_1 = ResBlock(channels, channels, groups, **where)
    mid.attn_1 = PixelAttention(channels, groups, **where)
    mid.block_2 = ResBlock(channels, channels, groups, **where)
    return mid


def _run_mid(mid: nn.Module, h: Tensor) -> Tensor:
    return mid.block_2(mid.attn_1(mid.block_1(h)))


class Encoder(nn.Module):
    """Pixels [B,3,H,W] -> moments [B,2*z_channels,H/8,W/8] (mean, then log variance)."""

    def __init__(self, config: AutoencoderConfig, **where):
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        groups = config.norm_groups
        self.conv_in = operations.Conv2d(config.in_channels, config.ch, 3, padding=1, **where)
        self.down = nn.ModuleList()
        c_in = config.ch
        for level, c_out in enumerate(widths):
            stage = nn.Module()
            stage.block = nn.ModuleList(
                ResBlock(c_in if i == 0 else c_out, c_out, groups, **where)
                for i in range(config.num_res_blocks)
            )
            if level < len(widths) - 1:
                stage.downsample = Downsample(c_out, **where)
            self.down.append(stage)
            c_in = c_out
        self.mid = _mid(c_in, groups, **where)
        self.norm_out = _norm(c_in, groups, **where)
        self.conv_out = operations.Conv2d(c_in, 2 * config.z_channels, 3, padding=1, **where)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for stage in self.down:
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample(h)
        return self.conv_out(_silu(self.norm_out(_run_mid(self.mid, h))))


class Decoder(nn.Module):
    """Latents [B,z_channels,h,w] -> pixels [B,3,8h,8w].

    `up.0` is the full-size stage, so stages run from the last to the first.
    """

    def __init__(self, config: AutoencoderConfig, **where):
        super().__init__()
        widths = [config.ch * m for m in config.ch_mult]
        groups = config.norm_groups
        c_in = widths[-1]
        self.conv_in = operations.Conv2d(config.z_channels, c_in, 3, padding=1, **where)
        self.mid = _mid(c_in, groups, **where)
        stages = []
        for level, c_out in reversed(list(enumerate(widths))):
            stage = nn.Module()
            stage.block = nn.ModuleList(
                ResBlock(c_in if i == 0 else c_out, c_out, groups, **where)
                for i in range(config.num_res_blocks + 1)
            )
            if level > 0:
                stage.upsample = Upsample(c_out, **where)
            stages.insert(0, stage)
            c_in = c_out
        self.up = nn.ModuleList(stages)
        self.norm_out = _norm(c_in, groups, **where)
        self.conv_out = operations.Conv2d(c_in, config.in_channels, 3, padding=1, **where)

    def forward(self, z: Tensor) -> Tensor:
        h = _run_mid(self.mid, self.conv_in(z))
        for stage in reversed(self.up):
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "upsample"):
                h = stage.upsample(h)
        return self.conv_out(_silu(self.norm_out(h)))


def as_cards_compute(x: Tensor) -> Tensor:
    """[B, C, H, W] with channels last in memory, as tensor cores take convolutions of half types.

    Other layers keep what they get. On a processor, and in float32, the usual order is as fast.
    """
    half = x.device.type != "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    return x.contiguous(memory_format=torch.channels_last) if half else x


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents: `mean` and `logvar`, both [B,z_channels,h,w]."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one latent.

        The noise is made where the generator lives, so a CPU seed gives the same latent on any device.
        """
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean)


class AutoencoderKL(nn.Module):
    """Encoder and decoder with the statistics that bring latents to about zero mean and unit spread.

    `encode` and `decode` work on raw latents z; the transformer works on `to_model(z) = (z - shift) * scale`.
    """

    def __init__(
        self,
        config: AutoencoderConfig | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.config = config or AutoencoderConfig()
        self.encoder = Encoder(self.config, device=device, dtype=dtype)
        self.decoder = Decoder(self.config, device=device, dtype=dtype)

    def encode(self, pixels: Tensor) -> Posterior:
        """Pixels [B,3,H,W] in [-1,1], H and W multiples of 8 -> the posterior over latents [B,16,H/8,W/8].

        Raises ValueError when a side is not a multiple of the downscale factor.
        """
        factor = self.config.downscale
        if pixels.ndim != 4 or pixels.shape[1] != self.config.in_channels:
            raise ValueError(f"expected pixels [B,{self.config.in_channels},H,W], got {list(pixels.shape)}")
        if pixels.shape[2] % factor or pixels.shape[3] % factor:
            raise ValueError(
                f"picture of {pixels.shape[3]}x{pixels.shape[2]} pixels: "
                f"both sides must be multiples of {factor}"
            )
        mean, logvar = self.encoder(as_cards_compute(pixels)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latent: Tensor) -> Tensor:
        """Raw latents [B,16,h,w] -> pixels [B,3,8h,8w], about [-1,1] and not clamped."""
        if latent.ndim != 4 or latent.shape[1] != self.config.z_channels:
            raise ValueError(f"expected latents [B,{self.config.z_channels},h,w], got {list(latent.shape)}")
        return self.decoder(as_cards_compute(latent))

    def to_model(self, latent: Tensor) -> Tensor:
        """Raw latents -> the scaled latents that the transformer sees, same shape."""
        return (latent - self.config.shift_factor) * self.config.scaling_factor

    def from_model(self, latent: Tensor) -> Tensor:
        """Scaled latents of the transformer -> raw latents for `decode`, same shape."""
        return latent / self.config.scaling_factor + self.config.shift_factor
