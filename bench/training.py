"""Training a LoRA of the whole model: what a step takes of a card, counted on fake tensors, and how long.

Nothing is computed. Norms are taken apart here, as torch before 2.9 does on cards, so that real steps take
somewhat less of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import register_flop_formula, sdpa_flop_count

from bench.copies import CopiedWeights
from bench.networks import CAPTION
from bench.operators import ATTENTION, PRODUCT, TORCH_CHOOSES, Operators
from bench.peak import Peak
from bench.rates import CARDS, Card
from bench.rows import prediction, row
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.acceleration.checkpointing import Checkpointing
from zimage_core.acceleration.small_card import FOR_LIBRARIES
from zimage_core.acceleration.streaming import bytes_of
from zimage_core.model.sequence import Captions
from zimage_core.train import lora
from zimage_core.train.batch import Batch
from zimage_core.train.frozen import Stored, frozen
from zimage_core.train.parts import bytes_of_step, streamed
from zimage_core.train.plan import Plan
from zimage_core.train.stages.velocity import Velocity
from zimage_core.train.trainer import Run, trained
from zimage_core.weights.targets import QUANTISED, TARGETS

GIGABYTE = 1e9
SETTINGS = lora.Settings(rank=32)
STREAMED = "5GB"
BARS = {("fp8", None, 1024): "<= 12", ("fp8", STREAMED, 1024): "<= 5"}  # GB
CASES = [
    (form, vram, side)
    for form, vram in (("bf16", None), ("fp8", None), ("fp8", STREAMED))
    for side in (512, 1024)
]
PREDICTED = ("H200", "RTX 4090", "RTX 3060")
BACKWARD = 2.5  # attention's products on the way back, as a multiple of those on the way there
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACK = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
NOWHERE = Path("/nowhere")  # holds no state to go on from


@register_flop_formula(FLASH)
def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


@register_flop_formula(FLASH_BACK)
def _attention_back(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(BACKWARD * sdpa_flop_count(query, key, value))


def stored(config: S3DiTConfig, form: str) -> S3DiT:
    """A transformer of a file in bf16, or in fp8 as ComfyUI's are. Values are whatever the memory held."""
    shapes = {name: p.shape for name, p in S3DiT(config, device="meta").named_parameters()}

    def empty(name: str) -> torch.Tensor:
        return torch.empty(shapes[name], dtype=torch.bfloat16)

    def layer(path: str) -> Stored:
        shape = shapes[f"{path}.weight"]
        if form == "fp8" and QUANTISED.fullmatch(f"{path}.weight"):
            weight = torch.empty(shape, dtype=torch.float8_e4m3fn)
            parts = {"weight": weight, "weight_scale": torch.empty(())}
            return Stored(parts, TARGETS["fp8"].spec(shape[1]), None)
        bias = empty(f"{path}.bias") if f"{path}.bias" in shapes else None
        return Stored({"weight": empty(f"{path}.weight")}, None, bias)

    return frozen(config, torch.bfloat16, layer, empty)


class Step:
    """A step of a LoRA on a fake model. resident: bytes of the weights that stay on the card."""

    def __init__(
        self,
        config: S3DiTConfig,
        form: str,
        vram: str | None,
        pixels: int,
        batch: int = 1,
        length: int = CAPTION,
    ) -> None:
        self.model = stored(config, form)
        side = pixels // 8
        tokens = batch * ((side // config.patch_size) ** 2 + self.model.padded(length))
        self.expected = bytes_of_step(self.model, tokens, lora.values_of(self.model, SETTINGS))
        self.resident, streaming = bytes_of(list(self.model.parameters())), None
        if vram:
            streaming = streamed(self.model, vram, "cpu", self.expected + FOR_LIBRARIES)
            away = [w for weights in streaming.stream.blocks.values() for w in weights]
            self.resident -= bytes_of(away)
            self.resident += sum(slot.room.nbytes for slot in streaming.stream.slots)
        self.latents = torch.empty(batch, config.in_channels, side, side)
        self.captions = Captions.whole(torch.empty(batch, length, config.cap_feat_dim))
        self.hooks = (Checkpointing(self.model, streaming),)

    def begin(self) -> None:
        lora.inject(self.model, SETTINGS)
        plan = Plan(steps=2, lr=1e-4)
        parameters = trained(self.model)
        made = plan.optimizers(parameters)
        for optimizer in made:
            for group in optimizer.param_groups:
                group["foreach"] = True  # as on a card
        self.run, self.task = Run(parameters, plan, NOWHERE, made), Velocity(None, hooks=self.hooks)
        for p in parameters.values():
            p.grad = torch.zeros_like(p)
        self.advance()  # from here on there are moments

    def gradients(self) -> None:
        batch = Batch(self.latents, self.captions)
        self.task.loss(self.model, batch, torch.Generator()).backward()

    def advance(self) -> None:
        nn.utils.clip_grad_norm_(self.run.parameters.values(), self.run.plan.clip)
        self.run.advance()


def case_rows(config: S3DiTConfig, form: str, vram: str | None, pixels: int) -> Iterator[dict]:
    with FakeTensorMode():
        step = Step(config, form, vram, pixels)
        with Peak() as peak:
            step.begin()
            with Operators() as operators, CopiedWeights(step.model) as copies:
                step.gradients()
            step.advance()
    found = (step.resident + peak.peak + FOR_LIBRARIES) / GIGABYTE
    label = f"LoRA rank {SETTINGS.rank}, {pixels}x{pixels}, {form}" + (f" streamed in {vram}" if vram else "")
    bar = BARS.get((form, vram, pixels))
    yield row(f"{label}: peak of a step", found, "GB", bar, "counted on fake tensors, batch 1, checkpointing")
    calls = Counter(
        o._replace(kind=ATTENTION, by=TORCH_CHOOSES) if o.kind == PRODUCT and "attention" in o.name else o
        for o in operators.calls
    )
    for card in CARDS:
        if card.name in PREDICTED:
            yield prediction(f"{label}: a step on {card.name}", seconds(card, calls, copies.bytes), "s")


def seconds(card: Card, calls: Counter, copied: int) -> float:
    """The longer of computing and of copying the streamed blocks; the optimiser's part is small."""
    computing = sum(count * card.seconds(operator) for operator, count in calls.items())
    return max(computing, copied / (card.bus * GIGABYTE))


def run() -> Iterator[dict]:
    for case in CASES:
        yield from case_rows(S3DiTConfig(), *case)
