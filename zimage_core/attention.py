"""Joint self-attention over caption and image tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .config import S3DiTConfig
from .rope import rotate


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, transformer_options: dict) -> Tensor:
    """torch's attention. q, k, v: [B, heads, S, D]; mask: bool over keys, or None. Returns [B, S, heads *
    D].
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Fused q, k, v rows; RMS norm on q and k per head; fewer k/v heads than q heads are repeated."""

    def __init__(
        self, config: S3DiTConfig, attend: Callable[..., Tensor], operations: Any, **place: Any
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = operations.Linear(config.dim, rows, bias=False, **place)
        self.out = operations.Linear(self.heads * self.head_dim, config.dim, bias=False, **place)
        self.q_norm = operations.RMSNorm(self.head_dim, eps=config.norm_eps, elementwise_affine=True, **place)
        self.k_norm = operations.RMSNorm(self.head_dim, eps=config.norm_eps, elementwise_affine=True, **place)
        self.attend = attend

    def forward(
        self, x: Tensor, mask: Tensor | None, freqs: Tensor, transformer_options: dict = {}
    ) -> Tensor:
        """x: [B, S, dim]; mask: None or bool [B, 1, 1, S] of the keys to see; freqs: rope table of S
        tokens.
        """
        q, k, v = (
            self.qkv(x)
            .unflatten(-1, (-1, self.head_dim))
            .split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        )
        q, k = rotate(self.q_norm(q), freqs), rotate(self.k_norm(k), freqs)
        if self.kv_heads != self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=2) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [B, heads, S, D]
        return self.out(self.attend(q, k, v, mask, transformer_options))
