"""Quantised formats side by side: their size, what they cost a forward, and what reading them takes.

Random weights at the widths of the 6 B model; the quantisers are comfy-kitchen's and those of the package
gguf. Real weights are spread less evenly than random ones, so only the order of the errors carries over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import gguf
import torch
from comfy_kitchen.tensor import QuantizedTensor
from torch import Tensor

from bench.rows import prediction, row
from tests.core.formats import KITCHEN, SAID, block_matrices
from tests.core.random_models import random_inputs, random_s3dit, relative, seeds
from zimage_core import S3DiT, S3DiTConfig
from zimage_core.weights import ggml, layouts

CONFIG = S3DiTConfig(n_layers=2, n_refiner_layers=0)
WRITTEN = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # what the package gguf can quantise to


class Stored(NamedTuple):
    parts: dict[str, Tensor]
    spec: dict[str, object]
    truth: Tensor  # the matrix by its own package


def by_kitchen(weight: Tensor, name: str) -> Stored:
    layout, options, names = KITCHEN[name]
    quantised = QuantizedTensor.from_float(weight, layout, **options)
    parts = {"weight": quantised._qdata}
    parts |= {ours: getattr(quantised._params, theirs) for theirs, ours in names.items()}
    said = {key: value for key, value in options.items() if key in SAID}
    return Stored(parts, {"format": name.split()[0].strip(","), **said}, quantised.dequantize())


def by_gguf(weight: Tensor, name: str) -> Stored:
    kind = gguf.GGMLQuantizationType[name]
    blocks = gguf.quants.quantize(weight.numpy(), kind)
    truth = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    return Stored({"weight": torch.from_numpy(blocks)}, {"format": "gguf", "type": name}, truth)


def measured(network: S3DiT, store: Callable[[Tensor, str], Stored], name: str) -> Iterator[dict]:
    """network: with the original weights, which it has again at the end."""
    inputs = random_inputs(network.config, *seeds(1), size=(8, 12), length=32)
    right = network(*inputs)
    originals = {layer: network.get_submodule(layer).weight for layer in block_matrices(network.state_dict())}
    size = parameters = seconds = off = 0
    for layer, weight in originals.items():
        parts, spec, truth = store(weight.data, name)
        began = time.perf_counter()
        ours = layouts.matrix_of(parts, spec, torch.float32)
        seconds += time.perf_counter() - began
        off = max(off, relative(ours, truth))
        size += sum(part.nbytes for part in parts.values())
        parameters += weight.numel()
        network.get_submodule(layer).weight = torch.nn.Parameter(ours, requires_grad=False)
    error = relative(network(*inputs), right)
    for layer, weight in originals.items():
        network.get_submodule(layer).weight = weight
    yield row(f"{name}: bytes", size / parameters, "per parameter")
    yield prediction(
        f"{name}: the full model", full_size(size / parameters), "GB", "blocks so, the rest bf16"
    )
    yield row(f"{name}: error of the velocity", error, "relative L2", None, "bf16 weights, one sigma")
    yield row(f"{name}: its matrices as we make them", off, "relative L2", "<= 1e-6", "its own package's")
    yield row(f"{name}: time to make matrices", seconds / parameters * 1e9, "s per 1e9", None, "on this CPU")


def full_size(each: float) -> float:
    """GB of the 6 B model where the matrices of its blocks take so many bytes a parameter."""
    state = S3DiT(S3DiTConfig(), device="meta").state_dict()
    blocks = sum(state[f"{layer}.weight"].numel() for layer in block_matrices(state))
    return (blocks * each + 2 * (sum(map(Tensor.numel, state.values())) - blocks)) / 1e9


def run() -> Iterator[dict]:
    return rows(CONFIG)


@torch.no_grad()
def rows(config: S3DiTConfig) -> Iterator[dict]:
    network = random_s3dit(config, *seeds(1)).bfloat16().float()
    yield prediction("bf16: the full model", full_size(2), "GB", "all of it")
    for name in KITCHEN:
        yield from measured(network, by_kitchen, name)
    for name in WRITTEN:
        yield from measured(network, by_gguf, name)
    for block in ggml.BLOCKS.values():
        if block.name not in WRITTEN:
            yield row(f"{block.name}: bytes", block.bytes / block.values, "per parameter")
