"""The training loop against a plain one, and what a run keeps when it is stopped."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from zimage_core.train import state as states
from zimage_core.train.plan import OPTIMIZERS, SCHEDULES, Plan
from zimage_core.train.trainer import LOG, Diverged, fit, trained

PLAN = Plan(steps=12, lr=2e-2, warmup=3, cooldown=0.5, ema=0.9, clip=0.5, seed=3)
FROZEN = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


class Toy(nn.Module):
    """A frozen matrix and two that train."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base = nn.Parameter(FROZEN.clone(), requires_grad=False)
        self.first = nn.Parameter(torch.randn(64, 6, generator=generator))
        self.second = nn.Parameter(torch.randn(3, 64, generator=generator))

    def loss(self, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(5, 4, generator=generator)
        return (x @ self.base.T @ self.first.T @ self.second.T - 1).square().mean()


def backward(model):
    def run(step, generator):
        value = model.loss(generator)
        value.backward()
        return value.item()

    return run


def train(plan, folder, **how):
    model = Toy()
    average = fit(trained(model), backward(model), plan, folder, **how)
    return model, average


def plain(plan: Plan) -> tuple[Toy, dict]:
    """The same by hand: AdamW, clipping, a rate for each step, an average."""
    model = Toy()
    optimizer = torch.optim.AdamW(
        [model.first, model.second], lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay
    )
    average = {"first": model.first.detach().clone(), "second": model.second.detach().clone()}
    for step in range(plan.steps):
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        losses = [model.loss(generator) for _ in range(plan.accumulate)]
        (sum(losses) / plan.accumulate).backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        left = (plan.steps - step) / round(plan.steps * plan.cooldown)
        optimizer.param_groups[0]["lr"] = plan.lr * min(1, (step + 1) / plan.warmup, left)
        optimizer.step()
        optimizer.zero_grad()
        keep = min(plan.ema, (1 + step) / (10 + step))
        for name, value in average.items():
            value.lerp_(model.get_parameter(name).detach(), 1 - keep)
    return model, average


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_those_of_a_plain_loop(tmp_path, accumulate):
    plan = dataclasses.replace(PLAN, accumulate=accumulate, weight_decay=0.01)
    model, average = train(plan, tmp_path)
    wanted, wanted_average = plain(plan)
    for name in ("first", "second"):
        assert torch.allclose(model.get_parameter(name), wanted.get_parameter(name), rtol=1e-5, atol=1e-6)
        assert torch.allclose(average[name], wanted_average[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "adamw8bit"])
def test_every_optimiser_learns_and_resumes_to_the_bit(tmp_path, optimizer):
    plan = dataclasses.replace(PLAN, steps=30, optimizer=optimizer, ema=0.0)
    untouched = Toy().loss(torch.Generator().manual_seed(9)).item()
    whole, _ = train(plan, tmp_path / "whole")
    assert whole.loss(torch.Generator().manual_seed(9)).item() < untouched
    train(plan, tmp_path / "parts", stop_at=11)
    resumed, _ = train(plan, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_another_seed_gives_other_batches(tmp_path):
    first, _ = train(PLAN, tmp_path / "first")
    other, _ = train(dataclasses.replace(PLAN, seed=4), tmp_path / "other")
    assert not torch.allclose(first.first, other.first, atol=1e-4)


def test_only_what_trains_is_saved(tmp_path):
    train(PLAN, tmp_path)
    (latest,) = states.files(tmp_path)
    stored = states.read(latest)
    assert set(stored.weights) == set(stored.average) == {"first", "second"}
    numbers = 4 * 64 * (6 + 3)  # weights, average and two moments
    assert latest.stat().st_size < 4 * numbers + 4096


def test_cancelling_keeps_the_last_step_and_goes_on_from_there(tmp_path):
    whole, average = train(PLAN, tmp_path / "whole")

    def cancel(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(PLAN, tmp_path / "cut", watch=cancel)
    assert states.load(tmp_path / "cut").step == 5
    steps = []
    resumed, again = train(PLAN, tmp_path / "cut", watch=lambda progress: steps.append(progress.step))
    assert steps == list(range(6, 13))
    assert torch.equal(whole.first, resumed.first) and torch.equal(average["second"], again["second"])


def test_a_failure_within_a_step_keeps_the_step_before(tmp_path):
    model = Toy()

    def failing(step, generator):
        if step == 7:
            raise torch.OutOfMemoryError("no room")
        return backward(model)(step, generator)

    with pytest.raises(torch.OutOfMemoryError):
        fit(trained(model), failing, PLAN, tmp_path)
    assert states.load(tmp_path).step == 7
    assert all(p.grad is None for p in model.parameters())


def test_a_loss_that_is_not_finite_ends_the_run_and_harms_nothing(tmp_path):
    model = Toy()

    def exploding(step, generator):
        value = model.loss(generator) * (math.inf if step == 4 else 1)
        value.backward()
        return value.item()

    with pytest.raises(Diverged, match="step 5.*Lower the learning rate"):
        fit(trained(model), exploding, PLAN, tmp_path)
    assert states.load(tmp_path).step == 4
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_two_states_are_kept_and_a_damaged_one_is_passed_over(tmp_path, caplog):
    plan = dataclasses.replace(PLAN, save_steps=3)
    train(plan, tmp_path)
    latest, before = states.files(tmp_path)
    assert [latest.name, before.name] == ["step-00000012.safetensors", "step-00000009.safetensors"]
    latest.write_bytes(latest.read_bytes()[:100])
    assert states.load(tmp_path).step == 9
    assert latest.name in caplog.text


def test_the_state_of_another_run_is_refused(tmp_path):
    train(PLAN, tmp_path)
    other = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="other settings.*another name"):
        fit(dict(other.named_parameters()), lambda step, generator: 0.0, PLAN, tmp_path)


def test_the_log_has_each_step_once_after_a_resume(tmp_path):
    train(PLAN, tmp_path, stop_at=6)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 7, "loss')  # as a killed run leaves it
    train(PLAN, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["seconds"] >= lines[0]["seconds"] > 0


def test_the_random_numbers_of_others_are_left_alone(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(PLAN, tmp_path)
    assert torch.equal(torch.rand(3), wanted)


def test_a_full_disk_is_said_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="free.*make room"):
        train(PLAN, tmp_path / "not" / "there")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_start_low_and_only_fall_at_the_end(schedule):
    plan = Plan(steps=100, lr=1.0, warmup=10, cooldown=0.4, schedule=schedule)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == 0.1 and rates[9:60] == [1.0] * 51
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert (rates[-1] < 0.05) == (schedule != "constant")


@pytest.mark.parametrize(
    ("how", "said"),
    [({"optimizer": "sgd"}, "adafactor"), ({"schedule": "steps"}, "cosine"), ({"steps": 0}, "at least 1")],
)
def test_plans_that_cannot_be_are_refused(how, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(PLAN, **how)


def test_eight_bit_adam_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(RuntimeError, match="pip install bitsandbytes"):
        dataclasses.replace(PLAN, optimizer="adamw8bit").optimizers(trained(Toy()))


def test_nothing_to_train_is_said(tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        fit({}, lambda step, generator: 0.0, PLAN, tmp_path)


def test_moments_within_a_dict_are_kept(tmp_path):
    """As those of bitsandbytes."""
    value = torch.arange(6, dtype=torch.uint8)
    moments = {"state": {0: {"step": 3, "outer": {"state1": value}}}, "param_groups": [{"lr": 1.0}]}
    states.save(tmp_path, states.State(1, 0.0, {}, {}, [moments]))
    (found,) = states.load(tmp_path).moments
    assert found["param_groups"] == [{"lr": 1.0}] and found["state"][0]["step"] == 3
    assert torch.equal(found["state"][0]["outer"]["state1"], value)
