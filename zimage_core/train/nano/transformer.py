"""Train the S3-DiT: rectified flow on the frozen autoencoder's latents and text encoder's features."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...conditions.references import References
from ...config import SHIFT, S3DiTConfig
from ...model.autoencoder import AutoencoderKL
from ...model.s3dit import Condition, Prompt, S3DiT
from ...model.sequence import Captions
from ...model.text_encoder import Qwen3TextEncoder
from ...prompt.template import apply_template, split_prompt, tokenise, tokenise_texts
from ..plan import Plan
from ..trainer import fit, trained
from .captions import CaptionSet
from .edits import KINDS, Edit, Edits, Picture
from .muon import with_muon
from .pictures import SIZE, SMALL_BOX, colours, on_background
from .shards import Shards

log = logging.getLogger(__name__)

PLAN = Plan(steps=1420, lr=1.5e-3, warmup=60, cooldown=0.25, ema=0.99, optimizer="muon")
BATCH = 32  # captions, and
EDITS = 24  # edits of every step
PAIRS = 2000  # pictures with a second thing
PAIR_SHARE = 0.35  # of captions are of these
PAIR_WEIGHT = 4.0  # of the errors in the corner with the second thing, which is small and hard
BLIND_SHARE = 0.15  # of edits come without vision features
KIND_SHARES = torch.tensor([0.1, 0.15, 0.05, 0.7])  # in the order of KINDS
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
    """Scaled latents [N,C,16,16,16] of every drawing on every named colour.

    drawings: [N,128,128,4]; change: what is done to each picture before it is encoded.
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
    captions: CaptionSet,
    edits: Edits | None,
    tokenizer: Any,
    count: int,
    long: bool,
    generator: torch.Generator,
) -> tuple[list[str], list[Picture]]:
    """Captions of one bucket of tokens and their pictures.

    long: of the second bucket, several phrasings joined. With `edits`, some are of its pictures with a
    second thing.
    """
    prompts, pictures = [], []
    while len(prompts) < count:
        pair, colour = captions.draw(generator)
        prompt, picture = pair.caption, Picture(pair.concept, colour)
        if long:
            rows = captions.trained[pair.concept][colour]
            while token_count(tokenizer, prompt) <= BUCKET:
                prompt += "; " + rows[int(torch.randint(len(rows), (1,), generator=generator))].caption
        elif edits is not None and float(torch.rand(1, generator=generator)) < PAIR_SHARE:
            prompt, picture = edits.draw_pair(generator)
        if token_count(tokenizer, prompt) <= (2 * BUCKET if long else BUCKET):
            prompts.append(prompt)
            pictures.append(picture)
    return prompts, pictures


def token_count(tokenizer: Any, prompt: str) -> int:
    return len(tokenizer(apply_template(prompt), add_special_tokens=False)["input_ids"])


def initialise(model: S3DiT) -> None:
    """Xavier for projections, 0.02 for pad tokens, zero for the last layer and for what gates are made of."""
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


class Gallery:
    """Latents of every picture that training shows, and the vision features of those that can be references.

    latents: [concepts, colours, 16, h, w]; features: [concepts, colours, hs, ws, width]; pairs: pictures with
    a second thing and their latents [P, 16, h, w].
    """

    def __init__(
        self,
        latents: Tensor,
        features: Tensor | None = None,
        pairs: Sequence[Picture] = (),
        pair_latents: Tensor | None = None,
    ):
        self.latents, self.features = latents, features
        self.pair_row = {picture: row for row, picture in enumerate(pairs)}
        self.pair_latents = pair_latents

    def of(self, pictures: Sequence[Picture]) -> Tensor:
        """[B, 16, h, w]."""
        return torch.stack(
            [
                self.latents[p.concept, p.colour] if p.second is None else self.pair_latents[self.pair_row[p]]
                for p in pictures
            ]
        )

    def weights(self, pictures: Sequence[Picture]) -> Tensor:
        """How much the errors of each cell count [B, 1, h, w]."""
        height, width = self.latents.shape[-2:]
        weights = torch.ones(len(pictures), 1, height, width)
        corner = SMALL_BOX.start / SIZE
        for row, picture in enumerate(pictures):
            if picture.second is not None:
                weights[row, :, int(corner * height) :, int(corner * width) :] = PAIR_WEIGHT
        return weights

    def seen(self, pictures: Sequence[Picture]) -> Tensor:
        """[B, hs, ws, width]."""
        return torch.stack([self.features[p.concept, p.colour] for p in pictures])


Loss = Callable[[S3DiT], Tensor]


@dataclass
class FromCaptions:
    """Text to image."""

    gallery: Gallery
    captions: CaptionSet
    text_encoder: Qwen3TextEncoder
    tokenizer: Any
    batch: int
    edits: Edits | None = None

    def losses(self, step: int, generator: torch.Generator, count: int, device: torch.device) -> list[Loss]:
        """The batch of a step in `count` parts."""
        long = step % LONG_EVERY == LONG_EVERY - 1
        prompts, pictures = draw_batch(self.captions, self.edits, self.tokenizer, self.batch, long, generator)
        tokens = tokenise(self.tokenizer, prompts)
        pieces = noised(self.gallery.of(pictures), generator)
        pieces = (*pieces, self.gallery.weights(pictures), tokens.input_ids, tokens.mask)
        pieces = [t.to(device).chunk(count) for t in pieces]
        return [partial(velocity_loss, self.text_encoder, *piece) for piece in zip(*pieces, strict=True)]


@dataclass
class FromReference:
    """An instruction and one reference picture to the edited picture, as the omni models take them."""

    gallery: Gallery
    edits: Edits
    text_encoder: Qwen3TextEncoder
    tokenizer: Any
    batch: int

    def losses(self, step: int, generator: torch.Generator, count: int, device: torch.device) -> list[Loss]:
        """The batch of a step in `count` parts."""
        drawn: list[Edit] = []
        while len(drawn) < self.batch:
            kind = KINDS[int(torch.multinomial(KIND_SHARES, 1, generator=generator))]
            edit = self.edits.draw(kind, generator)
            if len(self.ids(split_prompt(edit.instruction, 1)[1])) <= BUCKET:
                drawn.append(edit)
        tokens = tokenise_texts(self.tokenizer, [split_prompt(edit.instruction, 1)[1] for edit in drawn])
        before, after = [edit.before for edit in drawn], [edit.after for edit in drawn]
        pieces = [*noised(self.gallery.of(after), generator), self.gallery.weights(after)]
        pieces += [tokens.input_ids, tokens.mask, self.gallery.of(before), self.gallery.seen(before)]
        blind = float(torch.rand(1, generator=generator)) < BLIND_SHARE
        first, _, last = (torch.tensor([self.ids(part)]) for part in split_prompt("", 1))
        around = [part.to(device) for part in (first, last)]
        pieces = [t.to(device).chunk(count) for t in pieces]
        return [
            partial(edit_loss, self.text_encoder, around, blind, *piece)
            for piece in zip(*pieces, strict=True)
        ]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def train(
    config: S3DiTConfig,
    tasks: Sequence[FromCaptions | FromReference],
    state: Path,
    plan: Plan = PLAN,
    device: str = "cpu",
    workers: int = 1,
    start: dict[str, Tensor] | None = None,
    stop_at: int | None = None,
) -> S3DiT:
    """Train on the tasks together and return the model with averaged weights.

    workers: threads that share each batch, on CPU. start: weights to go on from; parts that they lack start
    fresh.
    """
    torch.manual_seed(plan.seed)
    model = S3DiT(config, device=device)
    initialise(model)
    if start is not None:
        model.load_state_dict(start, strict=False)
    model.load_state_dict(fit_velocity(model, tasks, state, plan, workers, stop_at))
    return model.eval()


def fit_velocity(
    model: S3DiT,
    tasks: Sequence[FromCaptions | FromReference],
    state: Path,
    plan: Plan,
    workers: int,
    stop_at: int | None,
) -> dict[str, Tensor]:
    """Fit whatever of the model is not frozen, on its device, and return all its weights averaged."""
    device = model.x_pad_token.device
    count = workers if device.type == "cpu" else 1
    shards = Shards(model, count)
    for task in tasks:
        task.text_encoder.to(device)

    def backward(step: int, generator: torch.Generator) -> float:
        parts = zip(*(task.losses(step, generator, count, device) for task in tasks), strict=True)
        return shards.backward([partial(mean_loss, losses) for losses in parts])

    return fit(trained(model), backward, plan, state, None, stop_at, with_muon(plan))


def noised(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Clean latents [B,16,h,w] -> noisy ones, their sigmas [B], and the velocities to predict."""
    noise = torch.randn(clean.shape, generator=generator)
    sigma = draw_sigmas(len(clean), generator)
    return torch.lerp(clean, noise, sigma.view(-1, 1, 1, 1)), sigma, noise - clean


def mean_loss(losses: Sequence[Loss], model: S3DiT) -> Tensor:
    return sum(loss(model) for loss in losses) / len(losses)


def velocity_loss(
    text_encoder: Qwen3TextEncoder,
    noisy: Tensor,
    sigma: Tensor,
    wanted: Tensor,
    weights: Tensor,
    ids: Tensor,
    mask: Tensor,
    model: S3DiT,
    condition: Callable[[Prompt], Condition] = lambda prompt: prompt,
) -> Tensor:
    """Squared error of the velocity, in the model's dtype.

    noisy, wanted: [B,16,h,w]; sigma: [B]; weights: [B,1,h,w]; ids, mask: [B,L]. condition: what is made of
    the prompt.
    """
    dtype = model.x_pad_token.dtype
    with torch.no_grad():
        features = text_encoder(ids).to(dtype)  # causal: padding on the right reaches no real token
    prompt = Prompt(Captions(features, tuple(mask.sum(1).tolist())))
    predicted = model(noisy.to(dtype), sigma, condition=condition(prompt))
    return ((predicted.float() - wanted).square() * weights).mean()


def edit_loss(
    text_encoder: Qwen3TextEncoder,
    around: list[Tensor],
    blind: bool,
    noisy: Tensor,
    sigma: Tensor,
    wanted: Tensor,
    weights: Tensor,
    ids: Tensor,
    mask: Tensor,
    reference: Tensor,
    seen: Tensor,
    model: S3DiT,
) -> Tensor:
    """The same with one clean reference.

    reference: its latent [B,16,h,w]; seen: its vision features [B,hs,ws,width], not used when `blind`.
    around: token ids [1,L] of the segments before and after the instruction's.
    """
    dtype = model.x_pad_token.dtype
    with torch.no_grad():
        segments = [text_encoder(part).to(dtype).expand(len(ids), -1, -1) for part in around]

    def condition(prompt: Prompt) -> Condition:
        return References.of(prompt, [reference.to(dtype)], segments, None if blind else [seen.to(dtype)])

    return velocity_loss(text_encoder, noisy, sigma, wanted, weights, ids, mask, model, condition)
