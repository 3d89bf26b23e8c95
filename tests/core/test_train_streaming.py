"""Training with weights that are streamed: gradients to the bit, each block copied at most twice a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.copies import CopiedWeights
from tests.core.random_models import random_s3dit, seeds
from tests.core.test_streaming import Deferred
from tests.core.together import CONFIG, examples
from zimage_core import S3DiT
from zimage_core.acceleration import streaming
from zimage_core.acceleration.checkpointing import Checkpointing
from zimage_core.acceleration.streaming import STEP_STACKS, Streaming, blocks_of, bytes_of, still
from zimage_core.model.hooks import BlockHook
from zimage_core.train import lora, parts
from zimage_core.train.batch import Batches
from zimage_core.train.data.records import PictureRecord
from zimage_core.train.frozen import from_checkpoint
from zimage_core.train.plan import Plan
from zimage_core.train.run import LoraRun, Settings
from zimage_core.train.samples import Sampling
from zimage_core.train.stages.velocity import Velocity
from zimage_core.train.trainer import trained
from zimage_core.weights import read_transformer
from zimage_core.weights.quantised import quantise_fp8

(SEED,) = seeds(1)
CPU = torch.device("cpu")
NANO = Path(__file__).resolve().parents[2] / "models" / "nano"
DEEP = replace(CONFIG, n_layers=5, n_refiner_layers=2)
ALL_STACKS = ("noise_refiner", "context_refiner", "layers")


def model_with(settings: lora.Settings, form: str = "plain") -> S3DiT:
    model = random_s3dit(DEEP, SEED)
    if form == "fp8":
        stored = {}
        for name, value in model.state_dict().items():
            large = value.ndim == 2 and ("attention" in name or "feed_forward" in name)
            stored[name], scale = quantise_fp8(value) if large else (value, None)
            if large:
                stored[name.removesuffix("weight") + "weight_scale"] = scale
        model = from_checkpoint(read_transformer(stored))
    torch.manual_seed(SEED)
    for change in lora.inject(model, settings).values():
        torch.nn.init.normal_(change.lora_B.weight, std=0.1)
    return model


def gradients(model: S3DiT, hooks: Sequence[BlockHook] = (), steps: int = 2) -> list[Tensor]:
    """Of two steps, the second with other weights."""
    task, found = Velocity(Batches(examples(3, (8, 12), SEED), 2), hooks=tuple(hooks)), []
    for step in range(steps):
        torch.manual_seed(step)  # of dropout
        task.backward(model, step, torch.Generator().manual_seed(step))
        found += [p.grad.clone() for p in trained(model).values()]
        for p in trained(model).values():
            p.data -= p.grad
            p.grad = None
    return found


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


SETTINGS = {
    "layers": lora.Settings(rank=2),
    "dropout": lora.Settings(rank=2, dropout=0.3),
    "all stacks": lora.Settings(rank=2, stacks=ALL_STACKS, targets="attention"),
}


@pytest.mark.parametrize("form", ["plain", "fp8"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_gradients_are_those_of_resident_weights_to_the_bit(settings: lora.Settings, form: str) -> None:
    expected = gradients(model_with(settings, form))
    for stay in (0, 3):
        model = model_with(settings, form)
        before = {name: p.data_ptr() for name, p in model.named_parameters()}
        keys = list(blocks_of(model, STEP_STACKS))
        hook = Checkpointing(model, Streaming(model, CPU, set(keys[:stay]), training=True))
        assert same(gradients(model, (hook,)), expected)
        assert {name: p.data_ptr() for name, p in model.named_parameters()} == before, "all is put back"


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_copies_may_be_as_late_as_a_card_makes_them(
    settings: lora.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = gradients(model_with(settings))
    monkeypatch.setattr(streaming, "copies_for", Deferred)
    model = model_with(settings)
    hook = Checkpointing(model, Streaming(model, CPU, training=True))
    assert same(gradients(model, (hook,)), expected)
    assert hook.streaming.stream.copies.overlapped > DEEP.n_layers, "fetched before they are asked for"


def fetched(model: S3DiT, hook: Checkpointing) -> list[str]:
    """Blocks in the order in which a later step copies them."""
    gradients(model, (hook,), steps=1)
    with CopiedWeights(model) as copies:
        gradients(model, (hook,), steps=1)
    first = [name for name in copies.copied if name.endswith((".qkv.weight", ".qkv.base.weight"))]
    return [name.partition(".attention")[0] for name in first]


def test_each_block_comes_twice_a_step_and_backwards_on_the_way_back() -> None:
    model = model_with(SETTINGS["layers"])
    order = fetched(model, Checkpointing(model, Streaming(model, CPU, training=True)))
    counts = Counter(order)
    assert max(counts.values()) <= 2
    layers = [f"layers.{index}" for index in range(DEEP.n_layers)]
    # the last is still there when the way back begins; before the first stands a block that nothing asks for
    there, back = order[: order.index(layers[-1]) + 1], order[order.index(layers[-1]) + 1 :]
    assert [name for name in there if name.startswith("layers")] == layers
    assert back[: len(layers) - 2] == layers[::-1][2:], "two find room beside one another"
    assert counts["context_refiner.0"] == 1


def test_what_trains_is_not_copied() -> None:
    model = model_with(SETTINGS["all stacks"])
    hook = Checkpointing(model, Streaming(model, CPU, training=True))
    with CopiedWeights(model) as copies:
        task = Velocity(Batches(examples(3, (8, 12), SEED), 2), hooks=(hook,))
        task.backward(model, 0, torch.Generator().manual_seed(0))
    assert copies.copied and not [name for name in copies.copied if "lora" in name]


def test_a_block_that_fails_on_the_way_back_leaves_the_weights_in_place() -> None:
    model = model_with(SETTINGS["layers"])
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    hook, calls = Checkpointing(model, Streaming(model, CPU, training=True)), []

    def fail(*args: object) -> None:
        calls.append(1)
        if len(calls) == 2:  # the first is on the way there
            raise torch.OutOfMemoryError("planted")

    model.layers[2].feed_forward.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError, match="planted"):
        gradients(model, (hook,), steps=1)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before


class Still(torch.nn.Linear):
    """A layer that must not be moved."""

    def _apply(self, *args: object) -> None:
        raise AssertionError("moved")


def test_what_is_put_beside_a_layer_leaves_its_weights_where_they_are() -> None:
    """On a card the small weights are there then, and those that are streamed are not."""
    model = random_s3dit(DEEP, SEED)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = Still
    assert lora.inject(model, lora.Settings(rank=2))


def test_modulation_that_trains_is_not_streamed_by() -> None:
    model = model_with(lora.Settings(rank=2, targets="with modulation"))
    with pytest.raises(ValueError, match="adaLN_modulation.*trains"):
        Checkpointing(model, Streaming(model, CPU, training=True))
    assert still(model.layers[0])


def test_a_run_from_files_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """With what is set aside for a step, some blocks of the built-in model stay and some are streamed."""
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "a.png")
    pictures = [PictureRecord(tmp_path / "a.png", ("all teal",))]
    plan = Plan(steps=2, lr=1e-3, warmup=1)
    settings = Settings(
        plan, lora.Settings(rank=2), sampling=Sampling(2), resolution=64, batch=2, prior=("a fox",)
    )
    made = {}
    for streams in (False, True):
        found, _ = parts.from_files(parts.files_in(NANO), vram="1GB" if streams else None)
        if streams:
            needed = parts.bytes_of_step(
                found.model, settings.tokens, lora.values_of(found.model, settings.lora)
            )
            blocks = [bytes_of(weights) for weights in blocks_of(found.model, STEP_STACKS, still).values()]
            small = bytes_of(list(found.model.parameters())) - sum(blocks)
            parts.stream(found, small + needed + 4 * max(blocks), "cpu", needed)
        changes = LoraRun(found, pictures, settings, tmp_path / str(streams)).train()
        if streams:
            streamed = [key for key in found.streaming.stream.blocks if key[0] in STEP_STACKS]
            assert 0 < len(streamed) < len(blocks)
        made[streams] = lora.tensors(changes, dtype=torch.float32)
    assert made[True].keys() == made[False].keys()
    assert all(torch.equal(value, made[False][name]) for name, value in made[True].items())
