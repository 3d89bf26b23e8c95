"""Weights that are streamed: results to the bit, each copied once, two blocks in memory at a time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from bench import streamed
from bench.copies import CopiedWeights
from bench.peak import Peak
from tests.core.random_models import TINY, random_inputs, random_s3dit, seeds
from zimage_core import AutoencoderKL, Qwen3TextEncoder, S3DiT, S3DiTConfig
from zimage_core.acceleration import streaming
from zimage_core.acceleration.small_card import PER_TEXT_TOKEN, PER_TOKEN, resident_blocks, size_of
from zimage_core.acceleration.streaming import Streaming, WeightStream, blocks_of, bytes_of, stream_layers
from zimage_core.acceleration.tiles import bytes_for, decode_in_tiles, starts
from zimage_core.config import Qwen3Config
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

(SEED,) = seeds(1)
SMALL = replace(TINY, n_layers=5, n_refiner_layers=2)
CPU = torch.device("cpu")
SIGMAS = (0.9, 0.5, 0.2)


def run(model: S3DiT, hooks: tuple = ()) -> list[Tensor]:
    """Three steps of a run with two conditions, as guidance has them."""
    x, _, features = random_inputs(SMALL, SEED)
    conditions = [Prompt(Captions.whole(features[:, :length])) for length in (21, 5)]
    memo, out = RunMemo(), []
    for sigma in SIGMAS:
        timesteps = torch.full((1,), sigma)
        for condition in conditions:
            out.append(model(x, timesteps, condition=condition, hooks=hooks, memo=memo))
            x = x - 0.1 * out[-1]
    return out


def step_keys(model: S3DiT) -> list[tuple]:
    return list(blocks_of(model, ("noise_refiner", "layers")))


@pytest.mark.parametrize("stay", [0, 1, 3, 6, 7])
@torch.no_grad()
def test_results_are_those_of_resident_weights_to_the_bit(stay: int) -> None:
    model = random_s3dit(SMALL, SEED)
    expected, before = run(model), {name: p.data_ptr() for name, p in model.named_parameters()}
    keys = step_keys(model)
    resident = set(keys[:stay])
    with CopiedWeights(model) as copies:
        made = run(model, (Streaming(model, CPU, resident),))
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before, "all is put back"
    names = [f"{stack}.{index}" for stack, index in keys if (stack, index) not in resident]
    counts = Counter(copies.blocks())
    forwards = 2 * len(SIGMAS)
    if len(names) > 2:  # as many find room beside one another
        # The first is fetched for a step that never comes; once the other caption's refiner is in its way.
        assert [counts[name] for name in names] == [forwards + 2, *[forwards] * (len(names) - 1)]
    once = [counts[f"context_refiner.{index}"] for index in range(2)]
    assert once == [2, 2] or (max(once) <= 2 and len(names) <= 2), "once a condition, not a step"
    assert counts.keys() == {*names, "context_refiner.0", "context_refiner.1"}


@torch.no_grad()
def test_bytes_of_a_step_are_those_of_its_streamed_blocks() -> None:
    model = random_s3dit(SMALL, SEED)
    hook, (x, sigma, features) = Streaming(model, CPU), random_inputs(SMALL, SEED)
    condition, memo = Prompt(Captions.whole(features)), RunMemo()
    model(x, sigma, condition=condition, hooks=[hook], memo=memo)
    with CopiedWeights(model) as copies:
        model(x, sigma + 0.01, condition=condition, hooks=[hook], memo=memo)
    weights = [w for block in blocks_of(model, ("noise_refiner", "layers")).values() for w in block]
    assert copies.bytes == sum(w.nbytes for w in weights)
    assert len(copies.copied) == len(weights) == 7 * 5, "each matrix of each block once"


@torch.no_grad()
def test_two_blocks_are_in_memory_whatever_the_depth() -> None:
    """Bytes are counted below our code, of whatever operators make."""
    peaks = {}
    for layers in (4, 12):
        model = random_s3dit(replace(SMALL, n_layers=layers), SEED)
        inputs = random_inputs(SMALL, SEED)
        model(*inputs)
        with Peak() as plain:
            model(*inputs)
        with Peak() as streamed:
            model(*inputs, hooks=[Streaming(model, CPU)])
        peaks[layers] = streamed.peak - plain.peak
    block = max(map(bytes_of, blocks_of(model, ("layers",)).values()))
    assert peaks[4] == peaks[12] <= 2 * block


@torch.no_grad()
def test_a_failing_block_leaves_the_weights_in_place() -> None:
    model = random_s3dit(SMALL, SEED)
    expected, hook = run(model), Streaming(model, CPU)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}

    def fail(*args) -> None:
        raise torch.OutOfMemoryError("planted")

    handle = model.layers[2].feed_forward.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        run(model, (hook,))
    handle.remove()
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert all(torch.equal(a, b) for a, b in zip(run(model, (hook,)), expected, strict=True))


class Interrupted(TorchDispatchMode):
    """Ctrl-C within a copy of weights."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= func is torch.ops.aten.copy_.default
        if self.left < 0:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("seed", seeds(6))
@torch.no_grad()
def test_a_copy_that_was_interrupted_is_made_anew(seed: int) -> None:
    model = random_s3dit(SMALL, SEED)
    expected, hook = run(model), Streaming(model, CPU)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    with pytest.raises(KeyboardInterrupt), Interrupted(random.Random(seed).randrange(100)):
        run(model, (hook,))
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert all(torch.equal(a, b) for a, b in zip(run(model, (hook,)), expected, strict=True))


class Deferred(streaming.InTurn):
    """A card whose copies are as late as they may be: done when somebody waits for them, in order.

    It knows what a real one would spoil: staging memory that is written before it was sent, and room that
    is overwritten while a block uses it.
    """

    def __init__(self, device: torch.device) -> None:
        self.sent: list[tuple[streaming.Slot, int]] = []
        self.in_use: streaming.Slot | None = None
        self.overlapped = 0

    def staging(self, room: Tensor) -> Tensor:
        return torch.empty_like(room)

    def ready(self, slot: streaming.Slot) -> None:
        self._until(slot)

    def send(self, slot: streaming.Slot, size: int) -> None:
        assert slot is not self.in_use, "the room is in use"
        slot.room.fill_(255)  # NaN in every type: nothing reads it before it is whole
        self.sent.append((slot, size))
        self.overlapped += self.in_use is None and len(self.sent) == 1

    def wait(self, slot: streaming.Slot) -> None:
        self._until(slot)
        self.in_use = slot

    def release(self, slot: streaming.Slot) -> None:
        assert slot is self.in_use
        self.in_use = None

    def _until(self, slot: streaming.Slot) -> None:
        while any(waiting is slot for waiting, _ in self.sent):
            first, size = self.sent.pop(0)
            first.room[:size].copy_(first.staging[:size])


@torch.no_grad()
def test_copies_may_be_as_late_as_a_card_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_s3dit(SMALL, SEED)
    expected = run(model)
    monkeypatch.setattr(streaming, "copies_for", Deferred)
    for stay in (0, 2, 5):
        hook = Streaming(model, CPU, set(step_keys(model)[:stay]))
        made = run(model, (hook,))
        assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
        assert hook.stream.copies.overlapped > len(SIGMAS), "blocks are fetched before they are asked for"


@torch.no_grad()
def test_layers_of_a_text_encoder() -> None:
    config = Qwen3Config(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=5,
        num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    encoder = Qwen3TextEncoder(config, dtype=torch.float32).requires_grad_(False)
    ids = torch.arange(9)[None]
    expected = encoder(ids)
    handles = stream_layers(encoder.model.layers, CPU)
    with CopiedWeights(encoder) as copies:
        assert torch.equal(encoder(ids), expected)
    assert len(copies.copied) == 4 * 7, "each matrix once"
    for handle in handles:
        handle.remove()
    assert torch.equal(encoder(ids), expected)


def test_blocks_that_stay_are_spread_and_leave_room_for_two() -> None:
    sizes = {("layers", index): 100 for index in range(10)}
    for room in range(0, 1400, 50):
        stay = resident_blocks(sizes, room)
        assert 100 * (len(stay) + 2) <= max(room, 200)
        assert len(stay) == min(max(room // 100 - 2, 0), 10)
    places = sorted(index for _, index in resident_blocks(sizes, 700))
    assert len(places) == 5 and max(b - a for a, b in zip(places, places[1:], strict=False)) == 2


@pytest.mark.parametrize(
    "text, size",
    [("6GB", 6 * 10**9), ("5.5 GiB", int(5.5 * 2**30)), ("800mb", 8 * 10**8), (1024, 1024)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["6", "GB", "-1GB", 0, True, None, "six GB", 1.5])
def test_what_is_no_size_is_named(text: object) -> None:
    with pytest.raises(ValueError, match="vram is"):
        size_of(text)


def peak_on_fakes(make: Callable[[], Callable[[], object]]) -> int:
    with FakeTensorMode(), torch.no_grad():
        call = make()
        with Peak() as tracker:
            call()
    return tracker.peak


@pytest.mark.parametrize("side, batch, length", [(64, 1, 32), (128, 1, 512), (128, 2, 77), (256, 1, 64)])
def test_what_a_forward_needs_beside_the_weights(side: int, batch: int, length: int) -> None:
    config = S3DiTConfig(n_layers=1, n_refiner_layers=1)

    def make() -> Callable[[], object]:
        model = S3DiT(config, dtype=torch.bfloat16).requires_grad_(False)
        x = torch.empty(batch, 16, side, side, dtype=torch.bfloat16)
        features = torch.empty(batch, length, config.cap_feat_dim, dtype=torch.bfloat16)
        return lambda: model(x, torch.ones(batch), features)

    tokens = batch * (side**2 // 4 + -(-length // 32) * 32)
    expected = PER_TOKEN * tokens * config.dim * 2
    assert 1 <= expected / peak_on_fakes(make) <= 1.6


@pytest.mark.parametrize("length", [64, 512])
def test_what_the_text_encoder_needs(length: int) -> None:
    config = Qwen3Config(num_hidden_layers=3)

    def make() -> Callable[[], object]:
        encoder = Qwen3TextEncoder(config, dtype=torch.bfloat16).requires_grad_(False)
        ids = torch.zeros(1, length, dtype=torch.long)
        return lambda: encoder(ids)

    expected = PER_TEXT_TOKEN * length * config.intermediate_size * 2
    assert 1 <= expected / peak_on_fakes(make) <= 2


@pytest.mark.parametrize("side", [32, 64])
def test_what_decoding_needs(side: int) -> None:
    def make() -> Callable[[], object]:
        autoencoder = AutoencoderKL(dtype=torch.bfloat16).requires_grad_(False)
        return lambda: autoencoder.decode(torch.empty(1, 16, side, side, dtype=torch.bfloat16))

    autoencoder = AutoencoderKL(device="meta", dtype=torch.bfloat16)
    assert 1 <= bytes_for(autoencoder, (8 * side) ** 2) / peak_on_fakes(make) <= 1.5


@pytest.mark.parametrize("height, width, side", [(40, 56, 32), (32, 32, 32), (20, 100, 32), (75, 33, 24)])
def test_tiles_of_what_is_local_are_the_whole(height: int, width: int, side: int) -> None:
    """A decoder that sees nothing beside a cell is the same in tiles."""
    latent = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(SEED))

    def decode(tile: Tensor) -> Tensor:
        assert max(tile.shape[-2:]) <= side
        return torch.nn.functional.interpolate(tile, scale_factor=2.0)

    torch.testing.assert_close(decode_in_tiles(decode, latent, side, 2), decode_whole(latent))
    for length in (height, width):
        covered = {at + i for at in starts(length, side) for i in range(side)}
        assert covered >= set(range(length)) and max(starts(length, side)) + side <= max(length, side)


def decode_whole(latent: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(latent, scale_factor=2.0)


def test_a_stream_without_blocks_is_none() -> None:
    assert WeightStream({}, [], CPU).following == {}


def test_a_step_takes_the_longer_of_computing_and_copying() -> None:
    """By hand: what is copied beside, what waits for the copy, and one slot too few to run ahead."""
    assert streamed.timeline(2.0, 1.0, [True] * 8) == pytest.approx(16.0)
    assert streamed.timeline(1.0, 2.0, [True] * 8) == pytest.approx(16.0)
    assert streamed.timeline(1.0, 2.0, [True, False] * 4) == pytest.approx(8.0)
    assert streamed.timeline(1.0, 5.0, [False] * 8) == pytest.approx(8.0)


@pytest.mark.parametrize("planted", ["nothing", "a double copy", "a leak"])
def test_counts_of_the_whole_model_see_what_is_planted(planted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, kept = WeightStream._fetch, []

    def doubled(self: WeightStream, key: tuple) -> streaming.Slot:
        fetch(self, key)
        self.slots[1].holds = None
        return fetch(self, key)

    if planted == "a double copy":
        monkeypatch.setattr(WeightStream, "_fetch", doubled)
    if planted == "a leak":
        leak = lambda self, slot: kept.append(slot.room.clone())  # noqa: E731
        monkeypatch.setattr(streaming.InTurn, "release", leak)
    failed = [found["name"] for found in streamed.counted([4.0]) if found["holds"] is False]
    expected = {"nothing": "", "a double copy": "over those of the blocks", "a leak": "alive at most"}
    assert bool(failed) == (planted != "nothing") and (not failed or expected[planted] in str(failed))


@torch.no_grad()
def test_the_copies_of_a_step_alone_are_those_of_its_blocks() -> None:
    model = random_s3dit(SMALL, SEED)
    stream = Streaming(model, CPU).stream
    streamed.copy_all(stream)
    with CopiedWeights(model) as copies:
        streamed.copy_all(stream)
    weights = [w for block in blocks_of(model, ("noise_refiner", "layers")).values() for w in block]
    assert copies.bytes == sum(w.nbytes for w in weights)
