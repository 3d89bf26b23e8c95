"""In which type a device multiplies matrices well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Instructions that multiply a type as it is, under torch's names: of x86, x86 and ARM. Without one of them a
# product is several times slower than in float32.
INSTRUCTIONS = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}


def cpu_instructions() -> Mapping[str, Any]:
    """What torch knows of this CPU; an older one names at least the commonest."""
    if hasattr(torch.cpu, "get_capabilities"):
        return torch.cpu.get_capabilities()
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return {"avx512_bf16": supported()}


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has arithmetic of the type."""
    wanted = INSTRUCTIONS.get(dtype)
    return wanted is None or any(cpu_instructions().get(name) for name in wanted)


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """What to compute in with weights of a type: float32 on a CPU without arithmetic of it, else the same."""
    return stored if device.type != "cpu" or cpu_multiplies(stored) else torch.float32
