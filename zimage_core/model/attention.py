"""Joint self-attention over caption and image tokens."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ..config import S3DiTConfig
from .backends import attention, within
from .fused import turned
from .sequence import NO_WEIGHTS, Span, Weights

VALUE = 16.0  # what attention gives on, at most, in float16


def fitted(x: Tensor, largest: float) -> Tensor:
    """In float16, x [.., D] times a power of two for each token: no value exceeds `largest`.

    For what a linear layer and then a norm follow: its sums of some thousand products stay below 65504, and
    the norm takes the factor away again. Other types, and tokens that are small enough, are left as they are.
    """
    if x.dtype != torch.float16:
        return x
    excess = (
        x.detach().abs().amax(dim=-1, keepdim=True).float() / largest
    )  # no gradient: it would be NaN at 0
    return x * torch.exp2(-excess.log2().ceil().clamp(min=0)).to(x.dtype)


class Attention(nn.Module):
    """Fused q, k, v rows; RMS norm on q and k per head; fewer k/v heads than q heads are repeated."""

    def __init__(self, config: S3DiTConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim

        def norm() -> nn.Module:
            return operations.RMSNorm(self.head_dim, eps=config.norm_eps, elementwise_affine=True, **factory)

        self.qkv = operations.Linear(config.dim, rows, bias=False, **factory)
        self.out = operations.Linear(self.heads * self.head_dim, config.dim, bias=False, **factory)
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x: Tensor, span: Span, weights: Weights = NO_WEIGHTS) -> Tensor:
        """x: [B, S, dim] -> [B, S, dim]; span: tables, mask and options of the S tokens.

        weights: of the norms of q and k, for a kernel that does their work.
        """
        heads = self.all_heads(x)
        counts = (self.heads, self.kv_heads)
        q, k = turned(heads, counts, (self.q_norm, self.k_norm), weights, span.freqs)
        v = heads[:, :, sum(counts) :]
        return self.project_out((span.attend or self.attend)(q, k, v, span.bias, span.options))

    def project_out(self, heads: Tensor) -> Tensor:
        """[B, S, heads * D] -> [B, S, dim]; in float16 of any scale a token, for the norm behind it."""
        return self.out(fitted(heads, VALUE))

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, S, heads, D], k and v [B, S, kv_heads, D], parts of one new tensor."""
        return self.all_heads(x).split((self.heads, self.kv_heads, self.kv_heads), dim=2)

    def all_heads(self, x: Tensor) -> Tensor:
        """[B, S, heads + 2 * kv_heads, D]"""
        return rearrange(self.qkv(x), "b s (h d) -> b s h d", d=self.head_dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, options: dict) -> Tensor:
        """Of q, k and v as `heads_of` gives them, normed and turned to their positions: [B, S, heads * D]."""
        return attention(q, k, v, bias).flatten(2)

    def attend_within(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, options: dict
    ) -> Tensor | None:
        """The same of sequences one behind the other, see backends.within; None: `attend` is for each."""
        out = within(q, k, v, starts, longest)
        return None if out is None else out.flatten(2)

    def by_head(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All three as [B, heads, S, D], k and v repeated where heads share them."""
        if self.kv_heads != self.heads:
            k, v = (repeat(t, "b s h d -> b s (h r) d", r=self.heads // self.kv_heads) for t in (k, v))
        return tuple(rearrange(t, "b s h d -> b h s d") for t in (q, k, v))
