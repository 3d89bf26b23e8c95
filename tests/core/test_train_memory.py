"""What a training step takes of a card, counted below our code, and what is set aside for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import training
from bench.peak import Peak
from bench.training import Step
from zimage_core import S3DiTConfig
from zimage_core.acceleration.small_card import FOR_LIBRARIES, size_of
from zimage_core.train import lora

WIDE = S3DiTConfig(n_layers=1, n_refiner_layers=1)  # widths of the 6B


def peak_of(step: Step) -> int:
    """Beside the model's weights."""
    with Peak() as peak:
        step.begin()
        step.gradients()
        step.advance()
    return peak.peak


@pytest.mark.parametrize(
    "form, pixels, batch, length",
    [("bf16", 512, 1, 96), ("bf16", 1024, 1, 512), ("fp8", 512, 2, 77), ("fp8", 1024, 1, 96)],
)
def test_what_a_step_needs_beside_the_weights(form: str, pixels: int, batch: int, length: int) -> None:
    with FakeTensorMode():
        step = Step(WIDE, form, None, pixels, batch, length)
        assert 1 <= step.expected / peak_of(step) <= 1.6


@pytest.mark.parametrize("vram", ["2.9GB", "3.1GB", "6GB"])
def test_a_streamed_step_stays_within_what_it_may_take(vram: str) -> None:
    with FakeTensorMode():
        step = Step(replace(WIDE, n_layers=4), "fp8", vram, 1024)
        taken = step.resident + peak_of(step) + FOR_LIBRARIES
    assert taken <= size_of(vram)
    streams = len(step.hooks[0].streaming.stream.blocks)
    assert streams == len(step.model.context_refiner) or taken >= 0.6 * size_of(vram), (
        "as many blocks stay as find room"
    )


def test_too_little_is_said_with_what_is_needed() -> None:
    with FakeTensorMode(), pytest.raises(ValueError, match=r"a step needs [\d.]+ GB .* 1GB are given"):
        Step(WIDE, "fp8", "1GB", 1024)


def test_values_that_train_are_counted_before_they_are_there() -> None:
    for settings in (lora.Settings(rank=5), lora.Settings(kind="lokr", rank=4, targets="attention")):
        with FakeTensorMode():
            model = training.stored(WIDE, "bf16")
            expected = lora.values_of(model, settings)
            made = lora.inject(model, settings).values()
            assert expected == sum(part.numel() for change in made for part in change.parts().values())


def test_rows_see_what_stays_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    case = ("fp8", None, 512)
    found, *predicted = training.case_rows(WIDE, *case)
    assert found["holds"] is None and all(one["predicted"] and one["value"] > 0 for one in predicted)
    kept, gradients = [], Step.gradients

    def leaking(step: Step) -> None:
        gradients(step)
        kept.append(torch.empty(10**9, dtype=torch.uint8))

    monkeypatch.setattr(training, "BARS", {case: f"<= {found['value'] + 0.1}"})
    assert next(training.case_rows(WIDE, *case))["holds"]
    monkeypatch.setattr(Step, "gradients", leaking)
    assert not next(training.case_rows(WIDE, *case))["holds"]
