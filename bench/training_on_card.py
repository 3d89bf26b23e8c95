"""Steps of a LoRA of the whole model on a card: random weights in each form, beside diffusers' own model.

The same LoRA, optimiser, loss and checkpoints in both; a step is all that a step of training does.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.forwards import device_name, short
from bench.networks import inputs, normal_weights
from bench.paired import OURS, measure, rows
from bench.peak import Peak
from bench.rows import row
from bench.scale import CARD, Scale
from bench.timing import Call, clock
from bench.training import STREAMED
from tests.core.peers import diffusers_of
from zimage_core import S3DiT
from zimage_core.acceleration.checkpointing import Checkpointing
from zimage_core.acceleration.streaming import STEP_STACKS, Streaming, blocks_of, bytes_of, still
from zimage_core.model.sequence import Captions
from zimage_core.train import lora
from zimage_core.train.batch import Batch
from zimage_core.train.frozen import Stored, frozen
from zimage_core.train.parts import bytes_of_step, streamed
from zimage_core.train.stages.velocity import Velocity
from zimage_core.train.trainer import trained
from zimage_core.weights.quantised import quantise_fp8
from zimage_core.weights.targets import QUANTISED, TARGETS

SETTINGS = lora.Settings(rank=32)
PEER_LAYERS = ("to_q", "to_k", "to_v", "to_out.0", "w1", "w2", "w3")  # the same matrices under its names
BAR = {"diffusers": "<= 1.0"}
ROUNDS, WARM_UPS = 5, 1
FORMS = ("bf16", "fp8", f"fp8 streamed in {STREAMED}")
GIGABYTE = 1e9


def stored(model: S3DiT, form: str, device: str) -> S3DiT:
    """The same weights as layers that do not train, in bf16 or fp8."""
    state = model.state_dict()

    def layer(path: str) -> Stored:
        weight, bias = state[f"{path}.weight"], state.get(f"{path}.bias")
        if form == "bf16" or not QUANTISED.fullmatch(f"{path}.weight"):
            return Stored({"weight": weight.to(device)}, None, None if bias is None else bias.to(device))
        small, scale = quantise_fp8(weight)
        parts = {"weight": small.to(device), "weight_scale": scale.to(device)}
        return Stored(parts, TARGETS["fp8"].spec(weight.shape[1]), None)

    return frozen(model.config, model.dtype, layer, lambda name: state[name].to(device))


def stepping(parameters: list[nn.Parameter], loss: Call) -> Call:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(model: S3DiT, pixels: int, device: str, streaming: Streaming | None = None) -> Call:
    lora.inject(model, SETTINGS)
    latents, caption = inputs(model.config, pixels, "cpu", model.dtype)
    batch = Batch(latents, Captions.whole(caption))
    task = Velocity(None, hooks=(Checkpointing(model, streaming),))
    generator = torch.Generator().manual_seed(0)
    return stepping(list(trained(model).values()), lambda: task.loss(model, batch, generator))


def diffusers_step(peer: nn.Module, model: S3DiT, pixels: int, device: str) -> Call:
    """Its own gradient checkpoints; our LoRA beside its layers."""
    stacks = [path for path, _ in peer.named_modules() if path.startswith("layers.")]
    made = []
    for path in stacks:
        if path.endswith(PEER_LAYERS) and isinstance(layer := peer.get_submodule(path), nn.Linear):
            change = lora.Lora(layer, SETTINGS)
            peer.set_submodule(path, change.to(device))
            made += change.parts().values()
    peer.enable_gradient_checkpointing()
    latent, caption = inputs(model.config, pixels, device, model.dtype)
    noise = torch.randn_like(latent)

    def loss() -> Tensor:
        noisy = [torch.lerp(latent, noise, 0.7)[0].unsqueeze(1)]
        out = peer(noisy, torch.full((1,), 0.3, device=device), [caption[0]], return_dict=False)[0][0]
        return (out[:, 0].float() - (latent - noise)[0].float()).square().mean()

    return stepping(made, loss)


def compared(scale: Scale, until: float) -> Iterator[dict]:
    model = normal_weights(scale.config, scale.device, scale.dtype)
    for pixels in scale.sizes[:2]:
        ours = our_step(stored(model, "bf16", scale.device), pixels, scale.device)
        calls = {OURS: ours, "diffusers": diffusers_step(diffusers_of(model), model, pixels, scale.device)}
        found = measure(calls, scale.device, min(scale.rounds, ROUNDS), until)
        case = Case("training_step", short(scale.dtype), pixels=pixels)
        yield from rows(case, device_name(scale.device), found, BAR)


def forms(scale: Scale, until: float) -> Iterator[dict]:
    """Each form alone: the time of a step, and all that is alive in it, weights included."""
    for pixels in scale.sizes[:2]:
        for form in FORMS:
            gc.collect()
            yield from _alone(scale, form, pixels)


def _alone(scale: Scale, form: str, pixels: int) -> Iterator[dict]:
    cuda, device = scale.device == "cuda", torch.device(scale.device)
    before = torch.cuda.memory_allocated() if cuda else 0
    source = normal_weights(scale.config, scale.device, scale.dtype)
    streams, streaming = "streamed" in form, None
    model = stored(source, form.partition(" ")[0], "cpu" if streams else scale.device)
    del source
    with Peak() as peak:
        held = bytes_of(list(model.parameters()))
        if streams:
            streaming = streamed(model, room(scale, model, pixels), device, expected(model, pixels))
            held -= sum(bytes_of(w) for w in streaming.stream.blocks.values())
        step = our_step(model, pixels, scale.device, streaming)
        for _ in range(WARM_UPS):
            step()
        peak.peak = peak.live
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = min(clock(scale.device, step) for _ in range(2))
    taken = torch.cuda.max_memory_allocated() - before if cuda else held + peak.peak
    label = f"{device_name(scale.device)}, LoRA rank {SETTINGS.rank}, {pixels}x{pixels}, {form}"
    yield row(f"{label}: a step", seconds, "s, best")
    bars = {"fp8": "<= 12", FORMS[-1]: "<= 5"} if scale is CARD else {}
    yield row(f"{label}: peak", taken / GIGABYTE, "GB", bars.get(form))


def tokens(model: S3DiT, pixels: int) -> int:
    side = math.ceil(pixels / 8 / model.config.patch_size)
    return side**2 + model.padded(96)


def expected(model: S3DiT, pixels: int) -> int:
    return bytes_of_step(model, tokens(model, pixels), lora.values_of(model, SETTINGS))


def room(scale: Scale, model: S3DiT, pixels: int) -> str | int:
    """For a small model so much that some of its blocks find no room."""
    if scale is CARD:
        return STREAMED
    block = max(bytes_of(w) for w in blocks_of(model, STEP_STACKS, still).values())
    rest = bytes_of(list(model.parameters())) - block * len(blocks_of(model, STEP_STACKS, still))
    return rest + expected(model, pixels) + 3 * block


def training_rows(scale: Scale, until: float) -> Iterator[dict]:
    yield from compared(scale, until)
    yield from forms(scale, until)
