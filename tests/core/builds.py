"""Builds the fused kernels for cards that are not there, as the model calls them; prints them as JSON.

python -m tests.core.builds

Needs a process without TRITON_INTERPRET. Calls go as far as the machine code of a card, and are not launched.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from zimage_core import S3DiTConfig
from zimage_core.model import kernels

CONFIG, TOKENS, EPS = S3DiTConfig(), 4192, 1e-5
CARDS = [  # compute capability and the type that models run in there
    *((capability, torch.bfloat16) for capability in (80, 89, 90, 100, 120)),
    (75, torch.float16),
    (80, torch.float32),
]
DUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Card(NamedTuple):
    """What triton asks of its driver before it builds."""

    capability: int

    def get_current_device(self) -> int:
        return self.capability  # what is built is kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def call_all(dtype: torch.dtype) -> None:
    """Each kernel once, on a block's tensors at 1024x1024 with 96 caption tokens."""

    def tokens(width: int) -> torch.Tensor:
        return torch.empty(1, TOKENS, width, dtype=dtype)

    x, width, head = tokens(CONFIG.dim), CONFIG.dim, CONFIG.head_dim
    weight, factor = torch.empty(width, dtype=dtype), torch.empty(1, 1, width, dtype=dtype)
    heads = tokens(3 * width).unflatten(-1, (-1, head))
    q, k, _ = heads.split((CONFIG.n_heads, CONFIG.n_kv_heads, CONFIG.n_kv_heads), dim=2)
    table, hidden = torch.empty(1, TOKENS, 1, head // 2, 2, 2), tokens(CONFIG.ffn_dim)
    kernels.norm_scale(x, weight, factor, EPS)
    kernels.norm_gate_add(x, x, weight, factor, EPS)
    kernels.norm_rotate(q, k, weight[:head], weight[:head], table, EPS)
    kernels.swiglu(hidden, hidden)


def used(machine_code: bytes) -> dict[str, int]:
    """Registers of a thread and bytes of its stack, where registers go that do not fit."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        said = subprocess.run([DUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(re.search(rf"{name}:(\d+)", said.stdout)[1]) for name in ("REG", "STACK", "LOCAL")}


def main() -> None:
    found = []

    def build(kernel: JITFunction, grid: tuple) -> Callable:
        return lambda *args, **options: found.append(kernel.warmup(*args, grid=grid, **options))

    JITFunction.__getitem__ = build
    rows = []
    for capability, dtype in CARDS:
        driver.set_active(Card(capability))
        found.clear()
        call_all(dtype)
        for kernel in found:
            moves = re.findall(r"\b(?:ld|st)\.global\S*", kernel.asm["ptx"])
            one = {"capability": capability, "dtype": str(dtype), "kernel": kernel.metadata.name}
            shared = kernel.metadata.shared
            rows.append({**one, **used(kernel.asm["cubin"]), "shared": shared, "moves": moves})
    sys.stdout.write(json.dumps(rows))


if __name__ == "__main__":
    main()
