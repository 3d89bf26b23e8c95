"""Train the S3-DiT: rectified flow on the frozen autoencoder's latents, conditioned on the frozen text
encoder's features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..autoencoder import AutoencoderKL
from ..config import SHIFT, S3DiTConfig
from ..prompt.template import apply_template, tokenise
from ..text_encoder import Qwen3TextEncoder
from ..transformer import S3DiT
from .captions import Captions
from .loop import Plan, Shards, fit
from .pictures import colours, on_background

log = logging.getLogger(__name__)

PLAN = Plan(steps=1830, lr=2e-3, warmup=60, cooldown=0.5, ema=0.99, muon=True)
BATCH = 64
UNIFORM_SHARE = 0.1  # of times are uniform, so that no part of the path is left untrained
# ... and this share is almost pure noise. Plain backgrounds show through noise at once (many equal latents
# average it out), so only there does the caption matter, and there the first of the 8 steps decides what is
# drawn
NOISE_SHARE, NOISE_SPAN = 0.25, 0.05
LONG_EVERY = 16
BUCKET = 32  # tokens


def latent_table(
    autoencoder: AutoencoderKL, drawings: Tensor, change: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Every drawing [N,128,128,4] on every named colour, its picture changed -> scaled latents
    [N,C,16,16,16].
    """
    rows = []
    with torch.no_grad():
        for colour in colours():
            pixels = on_background(drawings, colour.pixel)
            pixels = pixels if change is None else change(pixels)
            rows.append(torch.cat([autoencoder.encode(chunk).mode() for chunk in pixels.split(16)]))
    return autoencoder.to_model(torch.stack(rows, dim=1))


def draw_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Times of a batch [count]: logit-normal, shifted like the sampling grid; some uniform, some near 1."""
    u = torch.sigmoid(torch.randn(count, generator=generator))
    shifted = SHIFT * u / (1 + (SHIFT - 1) * u)
    uniform = torch.rand(count, generator=generator)
    noise = 1 - NOISE_SPAN * torch.rand(count, generator=generator) ** 2
    kind = torch.rand(count, generator=generator)
    return torch.where(kind < UNIFORM_SHARE, uniform, torch.where(kind > 1 - NOISE_SHARE, noise, shifted))


def draw_batch(
    captions: Captions, tokenizer: Any, count: int, long: bool, generator: torch.Generator
) -> tuple[list[str], list[tuple[int, int]]]:
    """Captions of one bucket of tokens (`long`: the second, several phrasings joined) and their (concept,
    colour) pictures.
    """
    prompts, pictures = [], []
    while len(prompts) < count:
        pair, colour = captions.draw(generator)
        prompt = pair.caption
        if long:
            rows = captions.trained[pair.concept][colour]
            while token_count(tokenizer, prompt) <= BUCKET:
                prompt += "; " + rows[int(torch.randint(len(rows), (1,), generator=generator))].caption
        if token_count(tokenizer, prompt) <= (2 * BUCKET if long else BUCKET):
            prompts.append(prompt)
            pictures.append((pair.concept, colour))
    return prompts, pictures


def token_count(tokenizer: Any, prompt: str) -> int:
    return len(tokenizer(apply_template(prompt), add_special_tokens=False)["input_ids"])


def initialise(model: S3DiT) -> None:
    """Xavier for the projections, 0.02 for the pad tokens, zero for the last layer and every gate: blocks
    start as identity.
    """
    for name, p in model.named_parameters():
        if name.endswith("pad_token"):
            nn.init.normal_(p, std=0.02)
        elif p.ndim == 1:
            (nn.init.zeros_ if name.endswith("bias") else nn.init.ones_)(p)
        elif "adaLN" in name or "final_layer" in name:
            nn.init.zeros_(p)
        elif "t_embedder" in name:
            nn.init.normal_(p, std=0.02)
        else:
            nn.init.xavier_uniform_(p)
    # tanh gates start slightly open: at exactly zero a block gets no gradient through them until they have
    # moved
    for block in (*model.noise_refiner, *model.layers):
        block.adaLN_modulation[0].bias.data.view(4, -1)[1::2] = 0.1


def train(
    config: S3DiTConfig,
    latents: Tensor,
    captions: Captions,
    text_encoder: Qwen3TextEncoder,
    tokenizer: Any,
    state: Path,
    plan: Plan = PLAN,
    batch: int = BATCH,
    device: str = "cpu",
    workers: int = 1,
    stop_at: int | None = None,
) -> S3DiT:
    """Train on latents [concepts, colours, 16, h, w] and return the model with averaged weights.

    workers: threads that share each batch, on CPU.
    """
    torch.manual_seed(plan.seed)
    model = S3DiT(config, device=device)
    initialise(model)
    average = fit_velocity(
        model, latents, captions, text_encoder, tokenizer, state, plan, batch, workers, stop_at
    )
    model.load_state_dict(average)
    return model.eval()


def fit_velocity(
    model: S3DiT,
    latents: Tensor,
    captions: Captions,
    text_encoder: Qwen3TextEncoder,
    tokenizer: Any,
    state: Path,
    plan: Plan,
    batch: int,
    workers: int,
    stop_at: int | None,
) -> dict[str, Tensor]:
    """Fit whatever of the model is not frozen, on its device, and return all its weights averaged."""
    device = model.x_pad_token.device
    count = workers if device.type == "cpu" else 1
    shards = Shards(model, count)
    text_encoder = text_encoder.to(device)

    def backward(step: int, generator: torch.Generator) -> float:
        long = step % LONG_EVERY == LONG_EVERY - 1
        prompts, pictures = draw_batch(captions, tokenizer, batch, long, generator)
        tokens = tokenise(tokenizer, prompts)
        concept, colour = torch.tensor(pictures).T
        clean = latents[concept, colour]
        noise = torch.randn(clean.shape, generator=generator)
        sigma = draw_sigmas(batch, generator)
        noisy = torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1))
        pieces = [
            t.to(device).chunk(count) for t in (noisy, sigma, noise - clean, tokens.input_ids, tokens.mask)
        ]
        return shards.backward(
            [partial(velocity_loss, text_encoder, *piece) for piece in zip(*pieces, strict=True)]
        )

    return fit(model, backward, plan, state, stop_at)


def velocity_loss(
    text_encoder: Qwen3TextEncoder,
    noisy: Tensor,
    sigma: Tensor,
    wanted: Tensor,
    ids: Tensor,
    mask: Tensor,
    model: S3DiT,
) -> Tensor:
    """Squared error of the velocity, in the model's dtype: noisy and wanted [B,16,h,w], sigma [B], ids and
    mask [B,L].
    """
    with torch.no_grad():
        context = text_encoder(ids)  # causal: padding on the right reaches no real token
    dtype = model.x_pad_token.dtype
    return F.mse_loss(model(noisy.to(dtype), sigma, context.to(dtype), attention_mask=mask).float(), wanted)


@torch.no_grad()
def sample(model: S3DiT, context: Tensor, mask: Tensor, sigmas: Sequence[float], noise: Tensor) -> Tensor:
    """Euler steps down the grid from noise [B,16,h,w] -> scaled latents."""
    x = noise
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = (
            x
            + (following - sigma)
            * model(x, torch.full((len(x),), sigma), context, attention_mask=mask).float()
        )
    return x
