"""How fast cards are at what a forward does: the one table that predictions come from.

The rates are what kernels reach. Products: 790 TFLOP/s on an H200 with random values (zeros are faster); on
an RTX 4090 161 in bfloat16, 313 in fp8, 460 in int8. Attention on an H100 at (1, 24, 4608, 128) in
bfloat16: 329 by FlashAttention 2 in torch, 631 by cuDNN (pytorch#142132). On GeForce cards both are set to
the peak that tensor cores have there with float32 sums. Memory: what copies reach, bytes read and written,
4.3 of 4.8 TB/s on an H200, and so nine tenths of the data sheet elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.operators import ATTENTION, PRODUCT, Operator

TERA = 1e12
LAUNCH = 3e-6  # seconds: no kernel is done sooner


@dataclass(frozen=True)
class Card:
    name: str
    products: dict[str, float]  # TFLOP/s by dtype
    attention: dict[str, float]  # TFLOP/s by kernel, bfloat16
    choice: str  # the kernel that torch 2.10 and later takes for unmasked attention by itself
    memory: float  # TB/s, read and written
    bus: float  # GB/s from pinned memory: what copies reach, nearly four fifths of PCIe's own rate

    def kernel(self, operator: Operator) -> str:
        """A kernel that this card does not have is not asked for on it."""
        return operator.by if operator.by in self.attention else self.choice

    def seconds(self, operator: Operator) -> float:
        """The longest of a launch, its bytes and its FLOPs; of products without a rate the bytes."""
        rate = None
        if operator.kind == PRODUCT:
            rate = self.products.get(operator.by)
        elif operator.kind == ATTENTION:
            rate = self.attention[self.kernel(operator)]
        compute = operator.flops / (rate * TERA) if rate else 0.0
        moved = (operator.read + operator.written) / (self.memory * TERA)
        return max(LAUNCH, compute, moved)


def geforce(name: str, memory: float, bus: float, bf16: float, **eight_bits: float) -> Card:
    flash = {"flash": bf16, "efficient": bf16}
    return Card(name, {"bfloat16": bf16, **eight_bits}, flash, "flash", memory, bus)


H200 = Card(
    "H200",
    {"bfloat16": 790, "float8_e4m3fn": 1380},  # rowwise fp8, its scaling included: 1.75 times bfloat16
    {"cudnn": 630, "flash": 330},
    "cudnn",
    4.3,
    50,
)
CARDS = (
    H200,
    geforce("RTX 5090", 1.61, 50, 209, float8_e4m3fn=389),
    geforce("RTX 4090", 0.91, 25, 165, float8_e4m3fn=313, int8=460),
    geforce("RTX 3090", 0.84, 25, 71, int8=284),
    geforce("RTX 4060", 0.245, 12, 30),
    geforce("RTX 3060", 0.324, 25, 25.5, int8=102),
)
