"""The timestep, and the scales and gates that it gives to all blocks in a few operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..config import S3DiTConfig
from .fused import by_kernel, in_few, weight_of
from .sequence import NO_WEIGHTS, Scales, Weights


class TimestepEmbedder(nn.Module):
    """Sigma's complement t in [0, 1000] -> the adaLN input. The sinusoid is float32, as in the reference."""

    FREQUENCIES = 128
    MAX_PERIOD = 10000

    def __init__(self, config: S3DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            operations.Linear(2 * self.FREQUENCIES, config.t_hidden, bias=True, **factory),
            nn.SiLU(),
            operations.Linear(config.t_hidden, config.t_dim, bias=True, **factory),
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t: [B] -> [B, t_dim] in dtype."""
        steps = torch.arange(self.FREQUENCIES, dtype=torch.float32, device=t.device)
        angle = t.float()[:, None] * torch.exp(-math.log(self.MAX_PERIOD) * steps / self.FREQUENCIES)
        return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1).to(dtype))


def modulations(blocks: Sequence[nn.Module], c: Tensor) -> list[Scales]:
    """c: [B, t_dim], the adaLN input -> the scales of each Block."""
    if not blocks:
        return []
    raw = torch.stack([block.adaLN_modulation(c) for block in blocks])
    raw = raw.unflatten(-1, (2, 2, -1)).unsqueeze(2)  # [blocks, B, 1, part, scale or gate, D]
    scale, gate = 1 + raw[..., 0, :], raw[..., 1, :].tanh()
    weights, folded = [NO_WEIGHTS] * len(blocks), [(None, None)] * len(blocks)
    if by_kernel(c):
        weights = [
            Weights(*(weight_of(norm, c) for norm in (*before(block), *behind(block), *of_heads(block))))
            for block in blocks
        ]
    elif in_few(c):
        found = [weight_of(norm, c) for block in blocks for norm in of_heads(block)]
        if all(weight is not None for weight in found):
            weights = [Weights(both=pair) for pair in torch.stack(found).unflatten(0, (-1, 2))]
    if not by_kernel(c) and c.shape[0] == 1:  # one weight for all tokens
        found = [weight_of(norm, c) for block in blocks for norm in before(block)]
        if all(weight is not None for weight in found):
            folded = [tuple(pair) for pair in torch.stack(found).unflatten(0, (-1, 2)) * scale[:, 0, 0]]
    return [
        Scales(s[..., 0, :], g[..., 0, :], s[..., 1, :], g[..., 1, :], *rest)
        for s, g, *rest in zip(scale, gate, weights, folded, strict=True)
    ]


def before(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The norms in front of attention and feed-forward, which the scales follow."""
    return block.attention_norm1, block.ffn_norm1


def behind(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    return block.attention_norm2, block.ffn_norm2


def of_heads(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    return block.attention.q_norm, block.attention.k_norm
