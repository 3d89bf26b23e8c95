"""One training loop for every part, seeded per step: a stopped run resumes to exactly the same weights."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..model.arithmetic import compute_dtype
from .optimizer import Muon

log = logging.getLogger(__name__)

# embeddings, modulation and last layers are no maps between hidden spaces, which is what Muon is for
NOT_HIDDEN = ("embed", "adaLN", "final_layer", "pad_token", "conv_in", "conv_out")


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    The rate warms up, stays, and falls linearly to zero over the last `cooldown` of the steps.
    """

    steps: int
    lr: float
    warmup: int = 100  # steps
    cooldown: float = 0.4  # fraction of steps
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # largest gradient norm
    ema: float = 0.999
    muon: bool = False  # orthogonalised momentum for matrices and convolutions; AdamW for the rest
    seed: int = 0
    save_seconds: float = 120.0

    def rate(self, step: int) -> float:
        """The learning rate at `step`, as a fraction of `lr`."""
        tail = max(1, round(self.steps * self.cooldown))
        return min(1.0, (step + 1) / max(1, self.warmup), (self.steps - step) / tail)


Backward = Callable[[int, torch.Generator], float]


class Shards:
    """Copies of a float32 model that share each batch, one thread each.

    They are in bf16 unless told otherwise, or in float32 where a CPU has no arithmetic of bf16.

    Two threads that meet once per step lose less on a busy machine than two threads inside every operation.
    """

    def __init__(self, model: nn.Module, count: int, dtype: torch.dtype = torch.bfloat16):
        self.model = model
        dtype = compute_dtype(dtype, next(model.parameters()).device)
        self.copies = [copy.deepcopy(model).to(dtype) for _ in range(count)]
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, losses: Sequence[Callable[[nn.Module], Tensor]]) -> float:
        """Run one loss per copy on the model's present weights; returns the mean loss.

        The model gets the mean gradient.
        """

        def run(part: tuple[nn.Module, Callable[[nn.Module], Tensor]]) -> float:
            shard, loss = part
            with torch.no_grad():
                for fast, exact in zip(shard.parameters(), self.model.parameters(), strict=True):
                    fast.copy_(exact)
                    fast.grad = None
            value = loss(shard) / len(losses)
            value.backward()
            return value.item()

        parts = list(zip(self.copies, losses, strict=True))
        values = list(self.pool.map(run, parts)) if len(parts) > 1 else [run(parts[0])]
        for exact, *fast in zip(self.model.parameters(), *(s.parameters() for s in self.copies), strict=True):
            exact.grad = sum(p.grad.float() for p in fast) if fast[0].grad is not None else None
        return sum(values)


def backward_of(loss: Callable[[int, torch.Generator], Tensor]) -> Backward:
    """A plain loss as what `fit` calls: differentiate and return the value."""

    def backward(step: int, generator: torch.Generator) -> float:
        value = loss(step, generator)
        value.backward()
        return value.item()

    return backward


def fit(
    model: nn.Module, backward: Backward, plan: Plan, state: Path, stop_at: int | None = None
) -> dict[str, Tensor]:
    """Train `model` in place until `plan.steps` (or `stop_at`) and return the averaged weights.

    `backward(step, generator)` leaves gradients on the model and returns the loss. It draws its batch from
    the generator alone, which is seeded by the step: nothing else is random, so the weights, averages and
    optimiser moments in the file `state` are all that a resumed run needs.
    """
    matrices, others = [], []
    for name, p in model.named_parameters():
        hidden = plan.muon and p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 32
        hidden = hidden and not any(part in name for part in NOT_HIDDEN)
        (matrices if hidden else others).append(p)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=plan.lr, weight_decay=plan.weight_decay))
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    device = next(model.parameters()).device
    step, spent = 0, 0.0
    if state.is_file():
        stored = torch.load(state, map_location=device, weights_only=True)
        model.load_state_dict(stored["model"])
        for optimizer, moments in zip(optimizers, stored["optimizers"], strict=True):
            optimizer.load_state_dict(moments)
        average, step, spent = stored["average"], stored["step"], stored["seconds"]
        log.info("%s: resumed at step %d", state.name, step)

    def save() -> None:
        state.parent.mkdir(parents=True, exist_ok=True)
        partial = state.with_suffix(".partial")
        torch.save(
            {
                "model": model.state_dict(),
                "optimizers": [o.state_dict() for o in optimizers],
                "average": average,
                "step": step,
                "seconds": spent,
            },
            partial,
        )
        partial.replace(state)

    end = plan.steps if stop_at is None else min(stop_at, plan.steps)
    saved = clock = time.monotonic()
    running = None
    while step < end:
        generator = torch.Generator().manual_seed((plan.seed << 32) + step)
        value = backward(step, generator)
        norm = nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * plan.rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(plan.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, weight in model.state_dict().items():
                average[key].lerp_(weight, 1 - keep)
        step += 1
        now = time.monotonic()
        spent, clock = spent + now - clock, now
        running = value if running is None else 0.98 * running + 0.02 * value
        if step % 25 == 0 or step == end:
            log.info(
                "%s: step %d/%d loss %.5f gradient %.2f, %.0f s", state.stem, step, end, running, norm, spent
            )
        if now - saved > plan.save_seconds:
            save()
            saved = now
    save()
    return average
