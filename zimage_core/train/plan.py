"""How long and how fast to train: the schedule of the rate, and the optimisers."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

Optimizers = list[torch.optim.Optimizer]
# Embeddings, modulation and last layers are no maps between hidden spaces, which is what Muon is for.
NOT_HIDDEN = ("embed", "adaLN", "final_layer", "pad_token", "conv_in", "conv_out")

# Fraction of the plan's rate, by the fraction of the cooldown that is left.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
    "constant": lambda left: 1.0,
}


def seed_of(seed: int, number: int) -> int:
    """Of a step or round of a run; torch's generator on the CPU reads the lower 32 bits alone."""
    return (seed * 1_000_003 + number) % 2**32


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    The rate warms up, stays, and falls to zero over the last `cooldown` of the steps.
    Raises ValueError for names that are not known and numbers that train nothing.
    """

    steps: int
    lr: float
    warmup: int = 100  # steps
    cooldown: float = 0.4  # fraction of steps
    schedule: str = "linear"  # how it falls
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999  # of the weights' average; 0 keeps none
    optimizer: str = "adamw"
    accumulate: int = 1  # batches to a step
    seed: int = 0
    save_seconds: float = 120.0
    save_steps: int | None = None  # saved at multiples of it, too

    def __post_init__(self) -> None:
        for name, value, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("optimizer", self.optimizer, OPTIMIZERS),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if self.steps < 1 or self.accumulate < 1 or not self.lr >= 0:
            raise ValueError(
                f"steps {self.steps}, accumulate {self.accumulate} and lr {self.lr}: expected at least 1, "
                "1 and 0"
            )

    def rate(self, step: int) -> float:
        """The learning rate at `step`, as a fraction of `lr`."""
        tail = max(1, round(self.steps * self.cooldown))
        left = SCHEDULES[self.schedule](min(1.0, (self.steps - step) / tail))
        return min((step + 1) / max(1, self.warmup), left, 1.0)

    def optimizers(self, parameters: Mapping[str, nn.Parameter]) -> Optimizers:
        """Of what trains. Raises RuntimeError where an optimiser is not installed."""
        return OPTIMIZERS[self.optimizer](parameters, self)


def adamw(parameters: Mapping[str, nn.Parameter], plan: Plan, kind: type = torch.optim.AdamW) -> Optimizers:
    return [kind(list(parameters.values()), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)]


def muon(parameters: Mapping[str, nn.Parameter], plan: Plan) -> Optimizers:
    """Muon for matrices between hidden spaces, AdamW for the rest; rates as AdamW's fit both."""
    kind = _of_torch("Muon")
    matrices, others = split_hidden(parameters, lambda p: p.ndim == 2)
    made = adamw(others, plan) if others else []
    if matrices:
        how = {"weight_decay": plan.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        made.append(kind(list(matrices.values()), lr=plan.lr, **how))
    return made


def adafactor(parameters: Mapping[str, nn.Parameter], plan: Plan) -> Optimizers:
    kind = _of_torch("Adafactor")
    return [kind(list(parameters.values()), lr=plan.lr, weight_decay=plan.weight_decay)]


def adamw8bit(parameters: Mapping[str, nn.Parameter], plan: Plan) -> Optimizers:
    try:
        kind = importlib.import_module("bitsandbytes").optim.AdamW8bit
    except ImportError as error:
        raise RuntimeError(
            f"8-bit AdamW needs bitsandbytes ({error}): pip install bitsandbytes, or choose adamw"
        ) from error
    return adamw(parameters, plan, kind)


def _of_torch(name: str) -> type:
    kind = getattr(torch.optim, name, None)
    if kind is None:
        raise RuntimeError(f"torch {torch.__version__} has no {name}: choose adamw, or install a newer torch")
    return kind


def split_hidden(
    parameters: Mapping[str, nn.Parameter], fits: Callable[[nn.Parameter], bool]
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Those between hidden spaces that fit, and all others."""
    hidden = {
        name: p
        for name, p in parameters.items()
        if fits(p) and min(p.shape[0], p[0].numel()) >= 32 and not any(part in name for part in NOT_HIDDEN)
    }
    return hidden, {name: p for name, p in parameters.items() if name not in hidden}


OPTIMIZERS: dict[str, Callable[[Mapping[str, nn.Parameter], Plan], Optimizers]] = {
    "adamw": adamw,
    "muon": muon,
    "adafactor": adafactor,
    "adamw8bit": adamw8bit,
}
