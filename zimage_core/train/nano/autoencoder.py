"""Train the narrow autoencoder: pictures on plain backgrounds <-> 16 channels, 8 times smaller each way."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import AutoencoderConfig
from ...model.autoencoder import AutoencoderKL, ResBlock
from ..plan import Plan
from ..trainer import fit, trained
from . import pictures
from .muon import with_muon
from .shards import Shards

log = logging.getLogger(__name__)

PLAN = Plan(steps=900, lr=2.5e-3, warmup=50, cooldown=0.5, ema=0.995, optimizer="muon")
BATCH = 8
# of the steps are taken at half the size with twice the pictures: they cost half and teach nearly as much
SMALL_SHARE = 0.67
KL_WEIGHT = 1e-4  # per latent element; holds the latents near unit variance at a cost of about 0.1 dB
SHIFT = pictures.SIZE // 2 - pictures.DRAWING // 2  # pixels a drawing can move inside its margin


def initialise(model: AutoencoderKL) -> None:
    """A start from which plain colours can be learned at once.

    Residual branches start at zero, so that pixels and latents are joined by a plain chain of convolutions.
    What a group norm takes away is the absolute level, which is all that a plain background has; a norm keeps
    it when each group also holds channels of a large fixed spread ("carriers"). Wide groups get two opposite
    constants. Where a group is two channels wide, constants do not help: there the carrier is a frame along
    the border, made by a convolution's zero padding.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.conv2.weight)
    nn.init.zeros_(model.encoder.mid.attn_1.proj_out.weight)
    nn.init.zeros_(model.decoder.mid.attn_1.proj_out.weight)

    groups, channels = model.config.norm_groups, model.config.z_channels
    with torch.no_grad():
        # latents start with little noise: much would teach the decoder to ignore them
        model.encoder.conv_out.weight[channels:] = 0
        model.encoder.conv_out.bias[channels:] = -4.0
        last = model.encoder.mid.block_2.conv2
        width = len(last.bias) // groups
        if width >= 3:
            last.bias.view(groups, width)[:, -2:] = torch.tensor([4.0, -4.0])
        block = model.decoder.up[0].block[-1]
        width = len(block.conv2.bias) // groups
        if width >= 3:
            block.conv2.bias.view(groups, width)[:, -2:] = torch.tensor([4.0, -4.0])
        elif width == 2:
            block.norm2.weight[-1], block.norm2.bias[-1] = 0.0, 2.0  # one hidden channel is constant
            frame = torch.full((3, 3), 2.0)
            frame[1, 1] = -16.0  # sums to zero, except where padding takes part of it away
            # one of each pair, half of the pairs
            carriers = torch.arange(len(block.conv2.bias) // 2, len(block.conv2.bias), 2) + 1
            block.conv2.weight[carriers, -1] = frame
            model.decoder.conv_out.weight[:, carriers] = 0


def training_batch(drawings: Tensor, generator: torch.Generator, size: int = BATCH) -> Tensor:
    """Random drawings, mirrored and moved, on random colours, half of them the named ones.

    drawings: [N,128,128,4]. Returns [size,3,128,128].
    """
    index = torch.randint(len(drawings), (size,), generator=generator)
    named = torch.stack([c.pixel for c in pictures.colours()])  # [C,3,1,1]
    choice = torch.randint(len(named), (size,), generator=generator)
    free = torch.rand(size, 3, 1, 1, generator=generator) * 2 - 1
    background = torch.where(torch.rand(size, 1, 1, 1, generator=generator) < 0.5, named[choice], free)
    moves = torch.randint(-SHIFT, SHIFT + 1, (size, 2), generator=generator).tolist()
    mirror = (torch.rand(size, generator=generator) < 0.5).tolist()
    batch = [
        torch.roll(d.flip(1) if m else d, (dy, dx), (0, 1))
        for d, (dy, dx), m in zip(drawings[index], moves, mirror, strict=True)
    ]
    return pictures.on_background(torch.stack(batch), background)


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the right and lower neighbour of [B,3,H,W]."""
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Squared error (what PSNR measures), a little absolute error, and squared error of the edges."""
    error = F.mse_loss(output, target) + 0.02 * F.l1_loss(output, target)
    return error + sum(0.5 * F.mse_loss(a, b) for a, b in zip(edges(output), edges(target), strict=True))


def train(
    config: AutoencoderConfig,
    drawings: Tensor,
    state: Path,
    plan: Plan = PLAN,
    batch: int = BATCH,
    device: str = "cpu",
    workers: int = 1,
    stop_at: int | None = None,
) -> AutoencoderKL:
    """Train on drawings [N,H,W,4] uint8 and return the model with averaged weights."""
    torch.manual_seed(plan.seed)
    model = AutoencoderKL(config).to(device)
    initialise(model)
    count = workers if device == "cpu" else 1
    shards = Shards(model, count, torch.float32)

    def backward(step: int, generator: torch.Generator) -> float:
        small = step < SMALL_SHARE * plan.steps
        pixels = training_batch(drawings, generator, 2 * batch if small else batch)
        pixels = F.avg_pool2d(pixels, 2) if small else pixels
        size = (side // config.downscale for side in pixels.shape[2:])
        noise = torch.randn(len(pixels), config.z_channels, *size, generator=generator)
        # not channels_last: bf16 group norm is ten times slower backwards in that layout on CPU
        pieces = [t.to(device).contiguous().chunk(count) for t in (pixels, noise)]
        return shards.backward([partial(loss, *piece) for piece in zip(*pieces, strict=True)])

    model.load_state_dict(fit(trained(model), backward, plan, state, None, stop_at, with_muon(plan)))
    return model.eval()


def loss(pixels: Tensor, noise: Tensor, model: AutoencoderKL) -> Tensor:
    """What training lowers, for pixels [B,3,H,W] and standard normal noise [B,16,H/8,W/8]."""
    with torch.autocast(pixels.device.type, torch.bfloat16):
        posterior = model.encode(pixels)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        output = model.decode(mean + torch.exp(0.5 * logvar) * noise)
    # in the transformer's units, where latents should have unit variance
    mean, logvar = model.to_model(mean), logvar + 2 * math.log(model.config.scaling_factor)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction_loss(output.float(), pixels) + KL_WEIGHT * kl


@torch.no_grad()
def psnr(model: AutoencoderKL, images: Tensor, batch: int = 16) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture, [N,3,H,W] in [-1,1] -> [N].

    Pictures are compared in 8 bits, as they are shown.
    """
    decibels = []
    for chunk in images.split(batch):
        output = model.decode(model.encode(chunk).mode()).clamp(-1, 1)
        decibels.append(-10 * torch.log10(((output - chunk) / 2).square().mean((1, 2, 3))))
    return torch.cat(decibels)


@torch.no_grad()
def normalise(model: AutoencoderKL, images: Tensor, batch: int = 16) -> None:
    """Fold an affine map per channel into the weights.

    Then `to_model(encode(images))` has mean 0 and spread 1. Latents of the model keep the Flux scale and
    shift, which hosts apply to every 16-channel latent.
    """
    z = torch.cat([model.encode(chunk).mode() for chunk in images.split(batch)])
    mean, spread = z.mean((0, 2, 3)), z.std((0, 2, 3))
    config = model.config
    # wanted raw latent: z' = (z - mean) / (spread * scale) + shift
    gain = 1 / (spread * config.scaling_factor)
    offset = config.shift_factor - mean * gain
    out, channels = model.encoder.conv_out, config.z_channels
    out.weight[:channels] *= gain.view(-1, 1, 1, 1)
    out.bias[:channels] = out.bias[:channels] * gain + offset
    out.bias[channels:] += 2 * gain.log()
    # z = (z' - offset) / gain; exact except at the border, where the convolution's zeros mean z' = 0 instead
    # of z = 0. Training holds the latents near these statistics already, so that the offset is small
    first = model.decoder.conv_in
    first.bias += -(first.weight * (offset / gain).view(1, -1, 1, 1)).sum((1, 2, 3))
    first.weight /= gain.view(1, -1, 1, 1)
    log.info(
        "latent spread was %.3f..%.3f, mean %.3f..%.3f", spread.min(), spread.max(), mean.min(), mean.max()
    )


def unseen_pictures(stems: list[str], drawings: Tensor) -> Tensor:
    """The held-out drawings, each on one of the named colours in turn -> [N,3,128,128] in [-1,1]."""
    concepts = set(pictures.concept_codes())
    index = [i for i, stem in enumerate(stems) if pictures.is_held_out(stem, concepts)]
    named = torch.stack([c.pixel for c in pictures.colours()])
    background = named[torch.arange(len(index)) % len(named)]
    return pictures.on_background(drawings[index], background)


def seen_drawings(stems: list[str], drawings: Tensor) -> Tensor:
    """The drawings that the autoencoder may learn from."""
    concepts = set(pictures.concept_codes())
    return drawings[[i for i, stem in enumerate(stems) if not pictures.is_held_out(stem, concepts)]]
