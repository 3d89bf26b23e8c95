"""Joint self-attention over caption and image tokens."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import S3DiTConfig
from .rope import rotate


class Attention(nn.Module):
    """Fused q, k, v rows; RMS norm on q and k per head; fewer k/v heads than q heads are repeated."""

    def __init__(self, config: S3DiTConfig, operations: Any, **place: Any) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = operations.Linear(config.dim, rows, bias=False, **place)
        self.out = operations.Linear(self.heads * self.head_dim, config.dim, bias=False, **place)
        self.q_norm = operations.RMSNorm(self.head_dim, eps=config.norm_eps, elementwise_affine=True, **place)
        self.k_norm = operations.RMSNorm(self.head_dim, eps=config.norm_eps, elementwise_affine=True, **place)

    def forward(
        self, x: Tensor, mask: Tensor | None, freqs: Tensor, transformer_options: dict = {}
    ) -> Tensor:
        """x: [B, S, dim]; mask: None or bool [B, 1, 1, S] of the keys to see; freqs: rope table of S
        tokens.
        """
        q, k, v = self.project(x)
        q = rotate(q, freqs)  # one after the other: each frees what it came from
        k = rotate(k, freqs)
        return self.out(self.attend(q, k, v, mask, transformer_options))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed q [B, S, heads, D], normed k and v [B, S, kv_heads, D]."""
        q, k, v = (
            self.qkv(x)
            .unflatten(-1, (-1, self.head_dim))
            .split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        )
        return self.q_norm(q), self.k_norm(k), v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, transformer_options: dict
    ) -> Tensor:
        """Of q, k and v as `project` gives them, turned to their positions: [B, S, heads * D]."""
        q, k, v = self.by_head(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    def by_head(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All three as [B, heads, S, D], k and v repeated where heads share them."""
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=2) for t in (k, v))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
