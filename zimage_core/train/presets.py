"""Settings of a LoRA by what it is for."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import TURBO_STEPS, S3DiTConfig
from .samples import Sampling

RATE = 1e-4  # of AdamW for a LoRA of the 6B, as ai-toolkit, musubi-tuner and diffusers have it


@dataclass(frozen=True)
class Preset:
    """steps: for each picture, within FEWEST and MOST."""

    rank: int
    targets: str
    noise: str
    caption_dropout: float
    steps: int


WARMUP, EMA = 20, 0.99  # steps; of what trains
BASE_STEPS, BASE_GUIDANCE = 28, 4.0  # of samples of a model that is not distilled
FEWEST, MOST = 500, 3000
PRESETS = {
    "character": Preset(16, "attention and feed-forward", "shifted", 0.05, 100),
    "style": Preset(32, "attention and feed-forward", "logit-normal", 0.1, 60),
    "concept": Preset(16, "attention and feed-forward", "shifted", 0.05, 80),
}


def sampling(variant: str) -> Sampling:
    """How pictures of Turbo, or of Base and omni are made."""
    return Sampling(TURBO_STEPS) if variant == "Turbo" else Sampling(BASE_STEPS, BASE_GUIDANCE)


def learning_rate(config: S3DiTConfig) -> float:
    """For a transformer of this width; narrower ones take larger steps."""
    return RATE * (S3DiTConfig.dim / config.dim) ** 1.5


def steps_for(preset: str, pictures: int) -> int:
    return min(max(PRESETS[preset].steps * pictures, FEWEST), MOST)
