"""The training loop, seeded per step: a stopped run goes on to exactly the same weights."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import shards
from . import state as states
from .distributed import ALONE, Processes, Stopped, whole
from .plan import Optimizers, Plan, seed_of

log = logging.getLogger(__name__)

SMOOTHED = 0.98  # of the mean of the losses that is logged, kept at each step
LOG = "log.jsonl"


@dataclass(frozen=True)
class Progress:
    """A step that was done. seconds: since the start, over all runs; gradient: its norm before clipping."""

    step: int
    steps: int
    loss: float
    smooth: float
    gradient: float
    rate: float
    seconds: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds / self.step * (self.steps - self.step)


Backward = Callable[[int, torch.Generator], float]
Watch = Callable[[Progress], None]


def backward_of(loss: Callable[[int, torch.Generator], Tensor]) -> Backward:
    """A plain loss as what `fit` calls: differentiate and return the value."""

    def backward(step: int, generator: torch.Generator) -> float:
        value = loss(step, generator)
        value.backward()
        return value.item()

    return backward


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model that are not frozen."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Diverged(ValueError):
    """A loss or a gradient is not finite; the weights are those of the step before."""


class Run:
    """What one `fit` keeps: only what trains is copied, averaged and saved."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        plan: Plan,
        folder: Path,
        made: Optimizers,
        group: Processes = ALONE,
    ) -> None:
        self.parameters, self.plan, self.folder, self.optimizers = parameters, plan, folder, made
        self.group = group
        self.average: Mapping[str, Tensor] = parameters
        if plan.ema:  # in bfloat16 it would not move
            self.average = {name: p.detach().to(wide(p.dtype), copy=True) for name, p in parameters.items()}
        self.step, self.seconds, self.saved = 0, 0.0, -1
        self.smooth: float | None = None
        self._resume()

    def _resume(self) -> None:
        if self.group.shards:
            stored = shards.load(self.folder, self.parameters, self.group)
        else:
            stored = states.load(self.folder, next(iter(self.parameters.values())).device)
        if stored is None:
            return
        states.check_fits(stored, self.parameters, self.folder)
        if stored.step > self.plan.steps:
            raise ValueError(
                f"this run has done {stored.step} steps already, and {self.plan.steps} are asked for: "
                f"ask for {stored.step} to take it as it is, for more to go on, or give another name"
            )
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(stored.weights[name])
                if self.plan.ema:
                    self.average[name].copy_(stored.average[name])
        for optimizer, moments in zip(self.optimizers, stored.moments, strict=True):
            optimizer.load_state_dict(moments)
        self.step, self.seconds = stored.step, stored.seconds
        self.saved = self.step
        self._forget_later_lines()
        log.info("%s: resumed at step %d", self.folder.name, self.step)

    def _forget_later_lines(self) -> None:
        path = self.folder / LOG
        if not path.is_file() or not self.group.first:
            return
        lines = path.read_text("utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= self.step]
        path.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        if kept:
            self.smooth = json.loads(kept[-1]).get("smooth")

    def save(self) -> None:
        if self.saved == self.step or not (self.group.first or self.group.sharded):
            return
        moments = [optimizer.state_dict() for optimizer in self.optimizers]
        weights = {name: p.detach() for name, p in self.parameters.items()}
        average = self.average if self.plan.ema else {}
        state = states.State(self.step, self.seconds, weights, average, moments)
        if self.group.sharded:
            shards.save(self.folder, state, self.group)
        else:
            states.save(self.folder, state)
        self.saved = self.step

    def advance(self) -> None:
        """One step of the optimisers and of the average."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.plan.lr * self.plan.rate(self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.plan.ema:
            keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, p in self.parameters.items():
                    self.average[name].lerp_(p.to(self.average[name].dtype), 1 - keep)
        self.step += 1

    def note(self, loss: float, gradient: float, started: float) -> Progress:
        """A line in the log."""
        self.seconds += time.monotonic() - started
        self.smooth = loss if self.smooth is None else SMOOTHED * self.smooth + (1 - SMOOTHED) * loss
        rate = self.plan.lr * self.plan.rate(self.step - 1)
        done = Progress(self.step, self.plan.steps, loss, self.smooth, gradient, rate, self.seconds)
        if self.group.first:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(done)) + "\n")
        return done


def wide(dtype: torch.dtype) -> torch.dtype:
    """In which small changes add up."""
    return torch.promote_types(dtype, torch.float32)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # cut off when the run was killed


def fit(
    parameters: Mapping[str, nn.Parameter],
    backward: Backward,
    plan: Plan,
    folder: Path,
    watch: Watch | None = None,
    stop_at: int | None = None,
    optimizers: Callable[[Mapping[str, nn.Parameter]], Optimizers] | None = None,
    group: Processes = ALONE,
) -> dict[str, Tensor]:
    """Train parameters in place until `plan.steps` (or `stop_at`) and return their average.

    `backward(number, generator)` adds to their gradients and returns the loss. number: of the batch; a step
    has `plan.accumulate` of them. It draws its batch from the generator, which is seeded by the step, as
    torch's own is: nothing else is random, so the files in `folder` are all that a resumed run needs. watch:
    called after each step; what it raises ends the run, and everything up to that step is kept. group: of
    several processes, `backward` adds the gradients of its own samples and returns their part of the loss.

    Raises Diverged where the loss or its gradient is not finite, ValueError where the state in the folder is
    of another run.
    """
    if not parameters:
        raise ValueError("nothing to train: all parameters are frozen")
    run = Run(parameters, plan, folder, (optimizers or plan.optimizers)(parameters), group)
    if group.first:
        averages = sum(value.nbytes for value in run.average.values()) if plan.ema else 0
        check_space(folder, 3 * sum(p.nbytes for p in parameters.values()) + averages)
    folder.mkdir(parents=True, exist_ok=True)
    end = plan.steps if stop_at is None else min(stop_at, plan.steps)
    saved, consistent = time.monotonic(), True
    try:
        while run.step < end:
            started = time.monotonic()
            late = group.first and started - saved > plan.save_seconds
            loss, asked, late = group.total([_backward(run, backward), group.asked, late])
            if asked:
                raise Stopped
            gradient = whole(nn.utils.clip_grad_norm_(parameters.values(), plan.clip))
            if not math.isfinite(loss) or not math.isfinite(norm := float(gradient)):
                raise Diverged(
                    f"step {run.step + 1}: the loss is {loss:g} and its gradient {float(gradient):g}. Lower "
                    "the learning rate, or train in bf16 where it was fp16; what was saved before is kept."
                )
            consistent = False
            run.advance()
            consistent = True
            done = run.note(loss, norm, started)
            if run.step % 25 == 0 or run.step == end:
                log.info(
                    "%s: step %d/%d loss %.5f gradient %.2f, %.0f s",
                    folder.name, run.step, end, done.smooth, norm, run.seconds,
                )  # fmt: skip
            every = plan.save_steps and run.step % plan.save_steps == 0
            if every or late:
                run.save()
                saved = time.monotonic()
            if watch is not None:
                watch(done)
    except BaseException as error:
        if group.sharded and not isinstance(error, (Stopped, Diverged)):
            consistent = False  # the others are elsewhere, and a state is saved by all together
        raise
    finally:
        for p in parameters.values():
            p.grad = None
        if consistent:
            run.save()
    return {name: value.detach() for name, value in run.average.items()}


def _backward(run: Run, backward: Backward) -> float:
    """The mean loss of the batches of a step, with their mean gradient on the parameters."""
    seed = seed_of(run.plan.seed, run.step)
    generator = torch.Generator().manual_seed(seed)
    device = next(iter(run.parameters.values())).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(run.plan.seed + run.group.rank, run.step))  # of dropout, by samples
        first = run.step * run.plan.accumulate
        losses = [backward(first + number, generator) for number in range(run.plan.accumulate)]
        loss = sum(losses) / len(losses)
    if run.plan.accumulate > 1:
        for p in run.parameters.values():
            if p.grad is not None:
                p.grad /= run.plan.accumulate
    run.group.add_gradients(run.parameters.values())
    return loss


def check_space(folder: Path, needed: int) -> None:
    """Raises OSError where a disk has no room for what a run writes."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < states.KEPT * needed + states.SPARE:
        raise OSError(
            f"{place} has {free / 1e9:.2f} GB free, and two states of this run need "
            f"{states.KEPT * needed / 1e9:.2f} GB: make room or choose another folder"
        )
