"""Blocks that the host streams come through its queue in order; what is needed once is fetched once.

The CPU has no queue. So the module that holds the host's gets a stand-in for the device: one that can copy
beside its work, and copies nothing but writes down what it is asked for. A host without such a module gets
one with the same functions.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management as management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from tests.core.random_models import random_s3dit
from tests.host.inside import extension_module
from tests.host.weight_files import TRANSFORMER
from tests.inside.sampling import SEED, from_file, prompts, sampled

STATE = random_s3dit(TRANSFORMER, SEED).state_dict()
POSITIVE, NEGATIVE = prompts(TRANSFORMER.cap_feat_dim, 21, 70)  # they pad to 32 and 96, and go in one call
STEPS = 3
STACKS = ("context_refiner", "noise_refiner", "layers")

prefetch = extension_module("nodes.host.running.prefetch")


class Queues:
    """The queue of newer hosts: each pop frees what was fetched before and fetches what comes next."""

    def __init__(self, cast: Any) -> None:
        self.PREFETCH_QUEUES: list[list] = []
        self.cast = cast

    def make_prefetch_queue(
        self, queue: list, device: torch.device, transformer_options: dict
    ) -> list | None:
        if not transformer_options.get("prefetch_dynamic_vbars", False):
            return None
        self.PREFETCH_QUEUES.append([None, *queue, None])
        return self.PREFETCH_QUEUES[-1]

    def prefetch_queue_pop(self, queue: list | None, device: torch.device, module: nn.Module | None) -> None:
        if queue is None:
            return
        self.free(queue.pop(0))
        if queue[0] is not None:
            queue[0] = (None, [part for root in queue[0] for part in root.modules() if hasattr(part, "_v")])
            self.cast(queue[0][1])

    def free(self, fetched: tuple | None) -> None:
        for part in fetched[1] if isinstance(fetched, tuple) else ():
            del part._prefetch

    def cleanup_prefetch_queues(self) -> None:
        for queue in self.PREFETCH_QUEUES:
            for fetched in queue:
                self.free(fetched)
        self.PREFETCH_QUEUES = []


class Streamed:
    """A MODEL whose layers the host is to stream, and what is fetched for it."""

    def __init__(self, patcher: ModelPatcher) -> None:
        self.patcher, self.network = patcher, patcher.model.diffusion_model
        self.names = {part: name for name, part in self.network.named_modules()}
        self.queued: list[str] = []  # what the queue fetched
        self.alone: list[str] = []  # what ran without
        for part in self.names:
            if getattr(part, "weight", None) is not None:
                part._v = object()  # how the host knows layers that it streams
                if not isinstance(part, nn.RMSNorm):  # weights of norms are taken, when nobody watches them
                    part.register_forward_pre_hook(self._seen)
        self.network.register_forward_pre_hook(self._asked, with_kwargs=True)

    def _asked(self, network: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        options = {**kwargs["transformer_options"], "prefetch_dynamic_vbars": True}
        return args, {**kwargs, "transformer_options": options}

    def _seen(self, part: nn.Module, args: tuple) -> None:
        if not hasattr(part, "_prefetch"):
            self.alone.append(self.names[part])

    def cast(self, parts: list[nn.Module], *args: Any, **kwargs: Any) -> tuple[None, bool]:
        for part in parts:
            assert not hasattr(part, "_prefetch"), "fetched twice"
            part._prefetch = {"signature": None}
            self.queued.append(self.names[part])
        return None, False

    def left(self) -> list[str]:
        return [name for part, name in self.names.items() if hasattr(part, "_prefetch")]


@pytest.fixture
def streamed(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Streamed:
    made = Streamed(from_file(scratch / "streamed.safetensors", STATE))
    host = prefetch.model_prefetch
    if host is None:
        monkeypatch.setattr(prefetch, "model_prefetch", Queues(made.cast))
        return made
    device = SimpleNamespace(
        NUM_STREAMS=2,
        is_device_cpu=lambda device: False,
        is_device_cuda=lambda device: False,
        device_supports_non_blocking=lambda device: True,
        ensure_pin_registerable=lambda size: None,
        sync_stream=lambda device, stream: None,
        args=management.args,
    )
    memory = SimpleNamespace(vram_aligned_size=lambda tensors: 0)
    parts = {"model_management": device, "memory_management": memory}
    copying = SimpleNamespace(cast_modules_with_vbar=made.cast)
    monkeypatch.setattr(host, "comfy", SimpleNamespace(**parts, ops=copying))
    monkeypatch.setattr(host, "PREFETCH_QUEUES", [])
    return made


@pytest.fixture(scope="module")
def resident(scratch: Path) -> Tensor:
    return picture(from_file(scratch / "resident.safetensors", STATE))


def picture(patcher: ModelPatcher) -> Tensor:
    return sampled(patcher, POSITIVE, NEGATIVE, steps=STEPS, cfg=3.0)


def consumed() -> bool:
    return all(queue == [None] for queue in prefetch.model_prefetch.PREFETCH_QUEUES)


def blocks_of(names: list[str]) -> list[str]:
    """layers.0.attention.qkv, layers.0.attention.out, layers.1 ... -> layers.0, layers.1 ..."""
    blocks = [".".join(name.split(".")[:2]) for name in names]
    return [block for i, block in enumerate(blocks) if i == 0 or blocks[i - 1] != block]


def in_order(*stacks: str) -> list[str]:
    counts = {"layers": TRANSFORMER.n_layers}
    return [f"{s}.{i}" for s in stacks for i in range(counts.get(s, TRANSFORMER.n_refiner_layers))]


def test_blocks_come_in_order_and_change_nothing(streamed: Streamed, resident: Tensor) -> None:
    assert torch.equal(picture(streamed.patcher), resident)
    captions = [name for name in streamed.queued if name.startswith(STACKS[0])]
    assert streamed.queued[: len(captions)] == captions
    assert blocks_of(streamed.queued[len(captions) :]) == in_order(*STACKS[1:]) * STEPS
    assert consumed() and not streamed.left()


def test_what_is_needed_once_is_fetched_once(streamed: Streamed) -> None:
    """The caption's part for each prompt, all else once a step, for both prompts."""
    picture(streamed.patcher)
    queued, alone = Counter(streamed.queued), Counter(streamed.alone)
    assert not queued.keys() & alone.keys()
    for name, count in (queued + alone).items():
        if name.startswith(("context_refiner", "cap_embedder")):
            assert count == 2, name
        elif "adaLN" in name or name.startswith("t_embedder"):
            assert count == STEPS and name in alone, name
        else:
            assert count == STEPS, name
    in_blocks = [name for name in streamed.names.values() if name.startswith(STACKS)]
    weighted = {name for part, name in streamed.names.items() if hasattr(part, "_v") and name in in_blocks}
    assert {name for name in weighted if "adaLN" not in name} == queued.keys()


def test_a_replaced_block_does_not_stop_the_queue(streamed: Streamed, scratch: Path) -> None:
    def identity(args: dict, extra: dict) -> dict:
        return {"img": args["img"], "txt": args["txt"]}

    plain = from_file(scratch / "resident.safetensors", STATE)
    for patcher in (plain, streamed.patcher):
        patcher.set_model_patch_replace(identity, "dit", "double_block", 0)
    assert torch.equal(picture(streamed.patcher), picture(plain))
    assert blocks_of(streamed.queued)[-TRANSFORMER.n_layers :] == in_order("layers")
    assert consumed() and not streamed.left()


def test_a_run_that_breaks_off_leaves_nothing(streamed: Streamed, resident: Tensor) -> None:
    """The host empties its queues after each node; the next run is as if nothing had been."""

    def cancelled(args: dict, extra: dict) -> dict:
        raise management.InterruptProcessingException

    broken = streamed.patcher.clone()
    broken.set_model_patch_replace(cancelled, "dit", "double_block", 0)
    with pytest.raises(management.InterruptProcessingException):
        picture(broken)
    assert streamed.left()
    prefetch.model_prefetch.cleanup_prefetch_queues()
    assert not streamed.left()
    assert torch.equal(picture(streamed.patcher), resident)


def test_without_streaming_there_is_no_queue() -> None:
    assert prefetch.prefetches(nn.Module(), {"prefetch_dynamic_vbars": False}) == []
    assert prefetch.prefetches(nn.Module(), {}) == []
