"""Forwards of the whole model with its weights streamed: counted, predicted, and measured on a card."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.copies import CopiedWeights
from bench.networks import CAPTION, inputs, normal_weights
from bench.peak import Peak
from bench.rows import prediction, row
from bench.scale import Scale
from bench.timing import Call, clock
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.acceleration.small_card import FOR_LIBRARIES, SmallCard
from zimage_core.acceleration.streaming import STEP_STACKS, blocks_of, bytes_of
from zimage_core.model.memo import RunMemo
from zimage_core.model.s3dit import Prompt
from zimage_core.model.sequence import Captions

GIGABYTE = 1e9
PIXELS = 1024
CAPS = (6.0, 4.0)  # GB
EFFICIENT = 0.95  # of the longer of computing and copying
WARM_UPS, TIMES = 1, 3


def forward(model: S3DiT, hooks: Sequence, x: Tensor, caption: Tensor) -> Call:
    condition, memo = Prompt(Captions.whole(caption)), RunMemo()
    return lambda: model(
        x, torch.full((1,), 0.7, device=x.device), condition=condition, hooks=hooks, memo=memo
    )


def tokens(model: S3DiT, pixels: int) -> int:
    return (pixels // 8 // model.config.patch_size) ** 2 + model.padded(CAPTION)


def counted(caps: Sequence[float] = CAPS) -> Iterator[dict]:
    """Rows of the later steps of a run at 1024x1024, on fake tensors: nothing is computed."""
    for cap in caps:
        with FakeTensorMode(), torch.no_grad():
            yield from _counted(cap)


def _counted(cap: float) -> Iterator[dict]:
    label = f"{PIXELS}x{PIXELS} in {cap:g} GB"
    model = S3DiT(S3DiTConfig(), dtype=torch.bfloat16).requires_grad_(False)
    card = SmallCard(int(cap * GIGABYTE) - FOR_LIBRARIES, torch.device("cpu"))
    with card.transformer(model, tokens(model, PIXELS)) as hooks:
        call = forward(model, hooks, *inputs(model.config, PIXELS, "cpu", torch.bfloat16))
        with CopiedWeights(model) as first:
            call()
        with CopiedWeights(model) as copies, Peak() as peak:
            call()
        (stay,) = card.stays.values()
        streamed = {f"{stack}.{index}" for stack, index in hooks[0].stream.blocks if stack in STEP_STACKS}
    sizes = {f"{s}.{i}": bytes_of(w) for (s, i), w in blocks_of(model, STEP_STACKS).items()}
    needed = sum(sizes[name] for name in streamed)
    blocks = copies.blocks()
    order = [name for name in sizes if name in streamed]
    against = f"counted on fake tensors, {len(sizes) - len(streamed)} of {len(sizes)} blocks stay"
    yield row(f"{label}, bytes copied a step", copies.bytes / GIGABYTE, "GB", None, against)
    yield row(
        "... over those of the blocks that do not stay", copies.bytes / needed, "x", "<= 1", "closed form"
    )
    turned = blocks[-1:] + blocks[:-1]  # the last copy is the next step's first
    yield row("... each once, in the order of the step", float(turned == order), "", "== 1", "closed form")
    refined = sum(name.startswith("context_refiner") for name in first.blocks())
    yield row(
        "... blocks of the caption's refiner, once a run", refined, "", f"== {len(model.context_refiner)}"
    )
    again = sum(name.startswith("context_refiner") for name in blocks)
    yield row("... and at a later step", again, "", "== 0")
    alive = (stay.bytes + peak.peak) / GIGABYTE
    yield row(f"{label}, weights and tensors alive at most", alive, "GB", f"<= {cap:g}", against)


def timeline(computes: float, copies: float, streams: Sequence[bool]) -> float:
    """Seconds of a step, its blocks in order, after others like it. Each computes, some are copied before.

    A copy is asked for when the streamed block before it was asked to compute, and its slot is free once the
    one before that has computed.
    """
    now = copied = 0.0
    ends: list[float] = []  # of the streamed blocks, whose slots take turns
    steps = []
    for _ in range(4):
        began = now
        for streamed in streams:
            if streamed:
                free = ends[-2] if len(ends) > 1 else 0.0
                copied = max(copied, free) + copies
                now = max(now, copied)
            now += computes
            if streamed:
                ends.append(now)
        steps.append(now - began)
    return steps[-1]


def predicted(name: str, bus: float, forward_seconds: float) -> Iterator[dict]:
    """Of a card with such a forward when all weights are there, and a bus of so many GB/s."""
    model = S3DiT(S3DiTConfig(), device="meta", dtype=torch.bfloat16)
    sizes = {key: bytes_of(weights) for key, weights in blocks_of(model, STEP_STACKS).items()}
    block = max(sizes.values())
    for cap in CAPS:
        card = SmallCard(int(cap * GIGABYTE) - FOR_LIBRARIES, torch.device("meta"))
        with card.transformer(model, tokens(model, PIXELS)) as hooks:
            streams = [key in hooks[0].stream.blocks for key in sizes]
        seconds = timeline(forward_seconds / len(sizes), block / (bus * GIGABYTE), streams)
        longer = max(forward_seconds, sum(streams) * block / (bus * GIGABYTE))
        label = f"{name}, {PIXELS}x{PIXELS}, streamed in {cap:g} GB"
        against = f"{sum(streams)} of {len(streams)} blocks at {bus:g} GB/s"
        yield prediction(f"{label}: forward", 1000 * seconds, "ms", against)
        yield prediction(
            f"{label}: longer of computing and copying / forward", longer / seconds, "x", against
        )


def on_card(scale: Scale, until: float) -> Iterator[dict]:
    """Peak and time under hard caps, against the same weights resident; a CPU has no caps."""
    cuda = scale.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else "CPU"
    x, caption = inputs(scale.config, scale.large, scale.device, scale.dtype)
    with torch.no_grad():
        model = normal_weights(scale.config, scale.device, scale.dtype)
        resident = best(scale.device, forward(model, (), x, caption))
        yield row(
            f"{name}, {scale.large}x{scale.large}, all resident: a forward", 1000 * resident, "ms, best"
        )
        model = model.cpu()
        for cap in scale.caps:
            yield from _under(scale, name, model, cap, resident, x, caption)
            yield from _diffusers_under(scale, name, model, cap, x, caption)


def _under(
    scale: Scale, name: str, model: S3DiT, cap: float, resident: float, x: Tensor, caption: Tensor
) -> Iterator[dict]:
    label = f"{name}, {scale.large}x{scale.large}, the library's streaming in {cap:g} GB"
    with hard_cap(scale.device, cap):
        card = SmallCard(int(cap * GIGABYTE), torch.device(scale.device))
        with card.transformer(model, tokens(model, scale.large)) as hooks:
            call = forward(model, hooks, x, caption)
            seconds = best(scale.device, call)
            yield row(f"{label}, peak", peak_of(call, card), "GB", f"<= {cap:g}", "the allocator's cap")
            yield row(f"{label}, a forward", 1000 * seconds, "ms, best")
            yield row(f"{label}, a forward over all resident", seconds / resident, "x")
            if hooks:
                copying = best(scale.device, lambda: copy_all(hooks[0].stream))
                longer = max(resident, copying)
                bar = f">= {EFFICIENT}"
                yield row(f"{label}, longer of computing and copying / it", longer / seconds, "x", bar)
        card.leave()


def _diffusers_under(
    scale: Scale, name: str, model: S3DiT, cap: float, x: Tensor, caption: Tensor
) -> Iterator[dict]:
    """diffusers' own offloading, a block at a time with a stream, under the same cap."""
    from bench.networks import diffusers_run
    from tests.core.peers import diffusers_of

    peer = diffusers_of(model)
    with hard_cap(scale.device, cap):
        peer.enable_group_offload(
            onload_device=torch.device(scale.device),
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=scale.device == "cuda",
        )
        run = diffusers_run(peer, x, caption)
        seconds = best(scale.device, lambda: run(torch.full((1,), 0.7, device=x.device)))
        label = f"{name}, {scale.large}x{scale.large}, diffusers' group offload in {cap:g} GB"
        yield row(f"{label}, a forward", 1000 * seconds, "ms, best")


def peak_of(call: Call, card: SmallCard) -> float:
    """Gigabytes since the cap was set; on a CPU those that are made beside the weights that stay."""
    if card.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / GIGABYTE
    with Peak() as tracker:
        call()
    return (tracker.peak + sum(stay.bytes for stay in card.stays.values())) / GIGABYTE


def copy_all(stream) -> None:
    """All streamed blocks of a step one after the other, nothing computed between."""
    for key in stream.blocks:
        if key[0] in STEP_STACKS:
            stream.take(key)
            stream.give(key)


def best(device: str, call: Call) -> float:
    for _ in range(WARM_UPS):
        call()
    return min(clock(device, call) for _ in range(TIMES))


@contextlib.contextmanager
def hard_cap(device: str, cap: float) -> Iterator[None]:
    """Within it torch can allocate so many GB of a card at most."""
    gc.collect()
    if device != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(cap * GIGABYTE / total)
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
