"""The rates of bench.rates, measured on the card that is here."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from bench import limits
from bench.forwards import attention, device_name
from bench.networks import CAPTION
from bench.rates import LAUNCH, TERA
from bench.rows import row
from bench.scale import Scale
from bench.timing import Call, clock

LAUNCHES = 500
WARM_UPS, TIMES = 3, 10


def best(device: str, call: Call) -> float:
    """Seconds of the fastest of some calls."""
    for _ in range(WARM_UPS):
        call()
    return min(clock(device, call) for _ in range(TIMES))


@torch.no_grad()
def rows(scale: Scale) -> Iterator[dict]:
    yield from products(scale)
    yield from attentions(scale)
    yield from moved(scale)


def products(scale: Scale) -> Iterator[dict]:
    """A block's linears at the large size, values as of a trained model."""
    dim, ffn = scale.config.dim, scale.config.ffn_dim
    tokens = limits.tokens(scale.config, scale.large) + CAPTION
    for inside, out in ((dim, 3 * dim), (dim, dim), (dim, ffn), (ffn, dim)):
        x = torch.randn(tokens, inside, device=scale.device, dtype=scale.dtype)
        weight = torch.randn(out, inside, device=scale.device, dtype=scale.dtype) / inside**0.5
        rate = 2 * tokens * inside * out / best(scale.device, lambda x=x, w=weight: F.linear(x, w)) / TERA
        name = f"{device_name(scale.device)}, product {tokens} x {inside} x {out}"
        yield row(name, rate, "TFLOP/s, best")


def attentions(scale: Scale) -> Iterator[dict]:
    """Each kernel on the tokens of a forward; open where it is not to be had."""
    for size in scale.sizes:
        tokens = limits.tokens(scale.config, size) + CAPTION
        heads, width = scale.config.n_heads, scale.config.head_dim
        # as the blocks have them: heads inside tokens
        q = torch.randn(1, tokens, heads, width, device=scale.device, dtype=scale.dtype).transpose(1, 2)
        for kernel in scale.kernels:
            value, against = None, ""
            try:
                seconds = best(scale.device, attention(q, kernel))
                value = limits.attention(scale.config, tokens) / seconds / TERA
            except RuntimeError as error:
                against = str(error).splitlines()[0]
            name = f"{device_name(scale.device)}, attention on {tokens} tokens, {kernel.name.lower()}"
            yield row(name, value, "TFLOP/s, best", None, against)


def moved(scale: Scale) -> Iterator[dict]:
    """Copies on the card and to it, and what a launch costs when nothing else does."""
    name = device_name(scale.device)
    source = torch.randint(0, 255, (scale.copied,), dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    rate = 2 * scale.copied / best(scale.device, lambda: target.copy_(source)) / TERA
    yield row(f"{name}, copy, read and written", rate, "TB/s, best")
    part = source[: scale.copied // 8].cpu()
    if scale.device == "cuda":
        part = part.pin_memory()
    rate = len(part) / best(scale.device, lambda: target[: len(part)].copy_(part, non_blocking=True)) / 1e9
    yield row(f"{name}, copy from pinned memory", rate, "GB/s, best")
    small = torch.zeros(8, device=scale.device)

    def launches() -> None:
        for _ in range(LAUNCHES):
            small.add_(1)

    seconds = best(scale.device, launches) / LAUNCHES
    against = f"{1e6 * LAUNCH:.0f} in bench.rates"
    yield row(f"{name}, small operator in a row of them", 1e6 * seconds, "microseconds", None, against)
