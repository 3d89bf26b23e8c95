"""Train the small vision encoder as SigLIP was, to tell which pictures and captions belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import VisionConfig
from ...model.text_encoder import Qwen3TextEncoder
from ...model.vision import VisionEncoder
from ...prompt.template import tokenise
from ..plan import Plan
from ..trainer import backward_of, fit, trained
from .captions import CaptionSet
from .muon import with_muon
from .pictures import colours, on_background

PLAN = Plan(steps=400, lr=2e-3, warmup=30, cooldown=0.6, ema=0.98, optimizer="muon")
BATCH = 64
SHIFT = 8  # pixels by which a picture may be off its centre


class Pairing(nn.Module):
    """The encoder with what only its training needs (arXiv 2303.15343, section 3).

    That is one vector per picture and per caption, and scale and bias of the sigmoid loss.
    """

    def __init__(self, config: VisionConfig, text_width: int):
        super().__init__()
        self.encoder = VisionEncoder(config)
        self.picture_embed = nn.Linear(config.hidden_size, config.hidden_size)
        self.caption_embed = nn.Linear(text_width, config.hidden_size)
        self.scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def scores(self, images: Tensor, captions: Tensor) -> Tensor:
        """images [B,H,W,3] in 0..1, captions [B,text_width] -> [B,B]."""
        pictures = self.picture_embed(self.encoder.features(images).flatten(1, 2).mean(1))
        return F.normalize(pictures, dim=1) @ F.normalize(self.caption_embed(captions), dim=1).T

    def loss(self, images: Tensor, captions: Tensor, same: Tensor) -> Tensor:
        """same: bool [B,B], which picture each caption fits."""
        logits = self.scores(images, captions) * self.scale.exp() + self.bias
        return -F.logsigmoid(torch.where(same, logits, -logits)).sum() / len(images)


def to_images(pixels: Tensor) -> Tensor:
    """Pictures [B,3,H,W] in [-1,1] -> [B,H,W,3] in [0,1], as hosts hold them."""
    return (pixels.permute(0, 2, 3, 1) + 1) / 2


@torch.no_grad()
def feature_table(encoder: VisionEncoder, drawings: Tensor) -> Tensor:
    """Features of every drawing [N,128,128,4] on every named colour [N,colours,hs,ws,width]."""
    rows = [encoder.features(to_images(on_background(drawings, colour.pixel))) for colour in colours()]
    return torch.stack(rows, dim=1)


def caption_vectors(text_encoder: Qwen3TextEncoder, tokenizer: Any, prompts: list[str]) -> Tensor:
    """Mean feature of each caption [B,width]."""
    tokens = tokenise(tokenizer, prompts)
    with torch.no_grad():
        features = text_encoder(tokens.input_ids) * tokens.mask[..., None]
    return features.sum(1) / tokens.mask.sum(1, keepdim=True)


def train(
    config: VisionConfig,
    drawings: Tensor,
    captions: CaptionSet,
    text_encoder: Qwen3TextEncoder,
    tokenizer: Any,
    state: Path,
    plan: Plan = PLAN,
    batch: int = BATCH,
    stop_at: int | None = None,
) -> Pairing:
    """Train on the concepts' drawings [N,128,128,4] on plain backgrounds; returns the averaged model."""
    torch.manual_seed(plan.seed)
    model = Pairing(config, text_encoder.config.hidden_size)
    palette = torch.stack([c.pixel for c in colours()])

    def loss(step: int, generator: torch.Generator) -> Tensor:
        drawn = [captions.draw(generator) for _ in range(batch)]
        concept = torch.tensor([pair.concept for pair, _ in drawn])
        colour = torch.tensor([colour for _, colour in drawn])
        moved = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
        images = to_images(on_background(drawings[concept].roll(moved, dims=(1, 2)), palette[colour]))
        vectors = caption_vectors(text_encoder, tokenizer, [pair.caption for pair, _ in drawn])
        fits = torch.zeros(batch, len(palette), dtype=torch.bool)
        for row, (pair, _) in enumerate(drawn):
            fits[row, list(pair.fits)] = True
        same = (concept[:, None] == concept) & fits[:, colour].T  # [picture, caption]
        return model.loss(images, vectors, same)

    model.load_state_dict(fit(trained(model), backward_of(loss), plan, state, None, stop_at, with_muon(plan)))
    return model.eval()
