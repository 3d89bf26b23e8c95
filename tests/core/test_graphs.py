"""Steps as graphs: the same bits as without, and never those of another prompt, size or weight."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.core.random_models import TINY, random_inputs, random_s3dit
from tests.core.recorder import capture
from zimage_core import S3DiT
from zimage_core.acceleration.graphs import Graphs
from zimage_core.conditions.packed import Packed
from zimage_core.conditions.references import References
from zimage_core.conditions.regions import Region, Regions
from zimage_core.model.hooks import BlockHook
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions


class Pair:
    """A network with graphs beside one without, on the same weights."""

    def __init__(self, **options: int) -> None:
        self.graphs = Graphs(capture, **options)
        self.plain, self.fast = random_s3dit(TINY, 1), random_s3dit(TINY, 1)
        self.fast.graphs = self.graphs
        self.memo = RunMemo()

    @torch.no_grad()
    def same(self, x: Tensor, sigma: Tensor, condition: Prompt, **more: object) -> bool:
        given = {"condition": condition, "memo": self.memo, **more}
        return torch.equal(self.fast(x, sigma, **given), self.plain(x, sigma, **given | {"memo": RunMemo()}))


def inputs(seed: int, size: tuple[int, int] = (8, 12), length: int = 21) -> tuple[Tensor, Tensor, Prompt]:
    x, sigma, caption = random_inputs(TINY, seed, size=size, length=length)
    return x, sigma, Prompt(Captions.whole(caption))


def test_steps_of_two_prompts_and_many_sigmas() -> None:
    """A guided run: both prompts have the same graph, since they are as long when padded."""
    pair = Pair()
    x, _, positive = inputs(1)
    negative = inputs(2, length=5)[2]
    for step in range(5):
        sigma = torch.tensor([1 - step / 5])
        assert all(pair.same(x + step, sigma, prompt) for prompt in (positive, negative))
    assert (pair.graphs.steps, pair.graphs.replays) == (10, 9)
    assert len(pair.graphs.kept) == 1


def test_another_size_or_length_is_another_graph() -> None:
    pair = Pair(count=2)
    given = [inputs(1), inputs(2, size=(10, 6)), inputs(3, length=70)]
    for _ in range(3):
        assert all(pair.same(*one) for one in given[:2])
    assert pair.graphs.replays == 4
    assert all(pair.same(*given[2]) for _ in range(2))  # in the place of the one used longest ago
    assert len(pair.graphs.kept) == 2 and pair.graphs.replays == 5
    assert pair.same(*given[0]) and pair.graphs.replays == 5


def test_packed_prompts_are_recorded_by_their_lengths() -> None:
    """Those of 64 + 64 and 96 + 32 tokens are tensors of the same sizes, and not the same step."""
    pair = Pair()
    x, _, _ = inputs(1, size=(16, 16))
    packed = [
        Packed([inputs(seed, length=length)[2] for seed, length in enumerate(lengths)])
        for lengths in ((60, 40), (70, 9), (41, 64))
    ]
    for step in range(4):
        sigma = torch.tensor([1 - step / 5])
        assert all(pair.same(x + step, sigma, each) for each in packed)
    assert len(pair.graphs.kept) == 2 and pair.graphs.replays == 12 - 2
    region = Region(Captions.whole(torch.ones(1, 9, TINY.cap_feat_dim)), torch.ones(1, 4, 4))
    regional = Packed([Regions(packed[0].conditions[0], [region]), packed[0].conditions[1]])
    assert all(pair.same(x, torch.ones(1), regional) for _ in range(3))
    assert "regions" in pair.graphs.reason and pair.graphs.replays == 12 - 2


def test_weights_that_moved_are_recorded_anew() -> None:
    pair = Pair()
    given = inputs(1)
    assert all(pair.same(*given) for _ in range(3))
    for model in (pair.plain, pair.fast):
        linear = model.layers[1].feed_forward.w2
        linear.weight = nn.Parameter(2 * linear.weight, requires_grad=False)
    pair.memo = RunMemo()
    assert all(pair.same(*given) for _ in range(3))
    assert pair.graphs.replays == 4  # 2 of 3 each time


def test_weights_changed_in_place_count_at_once() -> None:
    pair = Pair()
    given = inputs(1)
    assert all(pair.same(*given) for _ in range(3))
    with torch.no_grad():
        for model in (pair.plain, pair.fast):
            model.layers[1].feed_forward.w2.weight.mul_(3)
    assert pair.same(*given) and pair.graphs.replays == 3


class Doubling(BlockHook):
    capturable = False

    def leave(self, stack: str, hidden: Tensor) -> Tensor:
        return 2 * hidden


def test_what_cannot_be_recorded_runs_as_without() -> None:
    pair = Pair()
    given = inputs(1)
    assert all(pair.same(*given) for _ in range(3))
    pair.memo = RunMemo()  # the caption is refined with the hook as well
    assert pair.same(*given, hooks=[Doubling()]) and "Doubling" in pair.graphs.reason
    with torch.enable_grad():
        pair.fast(*given[:2], condition=given[2])
    assert "gradients" in pair.graphs.reason
    assert pair.graphs.replays == 2
    small = Pair(room=1000)
    assert all(small.same(*given) for _ in range(3)) and not small.graphs.replays


def test_reference_images_run_as_without() -> None:
    config = dataclasses.replace(TINY, siglip_feat_dim=48)
    model = random_s3dit(config, 3)
    x, sigma, condition = inputs(1)
    condition = References.of(condition, [torch.randn(1, 16, 8, 8)], None, None)
    with torch.no_grad():
        expected = model(x, sigma, condition=condition)
        model.graphs = Graphs(capture)
        assert all(torch.equal(model(x, sigma, condition=condition), expected) for _ in range(3))
    assert "reference images" in model.graphs.reason


def test_an_operator_that_waits_ends_recording(caplog: pytest.LogCaptureFixture) -> None:
    class Waiting(S3DiT):
        def step(self, x: Tensor, *given: object) -> Tensor:
            return super().step(x, *given) * float(x.new_ones(()).item())

    model = Waiting(TINY)
    model.load_state_dict(random_s3dit(TINY, 1).state_dict())
    model.graphs = Graphs(capture)
    x, sigma, condition = inputs(1)
    with torch.no_grad():
        results = [model(x, sigma, condition=condition) for _ in range(4)]
    assert all(torch.equal(results[0], result) for result in results[1:])
    assert caplog.text.count("without CUDA graphs") == 1
    assert "could not be recorded" in model.graphs.reason
