"""Qwen3 as a text encoder: causal attention, so right padding never reaches a real token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Qwen3Config
from . import operations
from .arithmetic import compute_dtype

Extend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def half_rotation(length: int, config: Qwen3Config, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [length, head_dim], of Llama's half-split rotary embedding."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    angle = torch.arange(length, dtype=torch.float32, device=device)[:, None] / config.rope_theta**exponent
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [B, heads, L, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)


class KeyValueCache:
    """What attention keeps of the tokens so far, and the rotation of each position, for `capacity` tokens."""

    def __init__(
        self, config: Qwen3Config, capacity: int, device: torch.device, dtype: torch.dtype, batch: int = 1
    ) -> None:
        shape = (config.num_hidden_layers, 2, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.dtype, self.device = dtype, device
        self.data = torch.empty(shape, device=device, dtype=dtype)
        self.rotation = [table.to(dtype) for table in half_rotation(capacity, config, device)]
        self.length = 0

    @staticmethod
    def bytes_needed(config: Qwen3Config, capacity: int, dtype: torch.dtype) -> int:
        rows = 2 * config.num_hidden_layers * config.num_key_value_heads
        return rows * capacity * config.head_dim * dtype.itemsize

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keeps k and v [B, kv_heads, new, D]; returns those of all tokens so far, in the type of k and v."""
        end = self.length + k.shape[2]
        keys, values = self.data[layer, :, :, :, :end]
        keys[:, :, self.length :] = k
        values[:, :, self.length :] = v
        return keys.to(k.dtype), values.to(v.dtype)


class SelfAttention(nn.Module):
    def __init__(self, config: Qwen3Config, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        q_rows, kv_rows = (
            n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.q_proj = operations.Linear(config.hidden_size, q_rows, bias=False, **factory)
        self.k_proj = operations.Linear(config.hidden_size, kv_rows, bias=False, **factory)
        self.v_proj = operations.Linear(config.hidden_size, kv_rows, bias=False, **factory)
        self.o_proj = operations.Linear(q_rows, config.hidden_size, bias=False, **factory)
        self.q_norm = operations.RMSNorm(config.head_dim, eps=config.rms_norm_eps, **factory)
        self.k_norm = operations.RMSNorm(config.head_dim, eps=config.rms_norm_eps, **factory)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, extend: Extend | None = None
    ) -> Tensor:
        """x: [B, L, D] -> [B, L, D].

        mask: None for plain causal, else bool [B, 1, L, L]. extend: of a cache, for this layer.
        """
        heads = (-1, self.head_dim)
        q = rotate_half(self.q_norm(self.q_proj(x).unflatten(-1, heads)).transpose(1, 2), cos, sin)
        k = rotate_half(self.k_norm(self.k_proj(x).unflatten(-1, heads)).transpose(1, 2), cos, sin)
        v = self.v_proj(x).unflatten(-1, heads).transpose(1, 2)
        if extend is not None:
            k, v = extend(k, v)
            if x.shape[1] == 1:  # the heads that share a key stand as its queries: nothing is repeated
                out = F.scaled_dot_product_attention(q.view(-1, k.shape[1], self.groups, self.head_dim), k, v)
                return self.o_proj(out.reshape(x.shape[0], 1, -1))
        k, v = (t.repeat_interleave(self.groups, dim=1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: Qwen3Config, operations: Any, **factory: Any) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = operations.Linear(width, inner, bias=False, **factory)
        self.up_proj = operations.Linear(width, inner, bias=False, **factory)
        self.down_proj = operations.Linear(inner, width, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config: Qwen3Config, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, operations, **factory)
        self.mlp = MLP(config, operations, **factory)
        self.input_layernorm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)
        self.post_attention_layernorm = operations.RMSNorm(
            config.hidden_size, eps=config.rms_norm_eps, **factory
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, extend: Extend | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, extend)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3Model(nn.Module):
    """The decoder under its Hugging Face names."""

    def __init__(
        self, config: Qwen3Config, layers: int, final_norm: bool, operations: Any, **factory: Any
    ) -> None:
        super().__init__()
        self.embed_tokens = operations.Embedding(config.vocab_size, config.hidden_size, **factory)
        self.layers = nn.ModuleList(DecoderLayer(config, operations, **factory) for _ in range(layers))
        if final_norm:
            self.norm = operations.RMSNorm(config.hidden_size, eps=config.rms_norm_eps, **factory)


class Qwen3TextEncoder(nn.Module):
    """Captions -> features: the hidden state before the last layer (`hidden_states[-2]` in transformers).

    language_model: also keep the last layer and the final norm, which features do not need but `logits` does.
    """

    def __init__(
        self,
        config: Qwen3Config,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        operations: Any = operations,
        language_model: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.language_model = language_model
        layers = config.num_hidden_layers if language_model else config.num_hidden_layers - 1
        self.model = Qwen3Model(config, layers, language_model, operations, device=device, dtype=dtype)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features of the second last layer, [B, L, hidden_size].

        input_ids: int [B, L], right-padded; attention_mask: bool or int [B, L].
        """
        return self._run(input_ids, attention_mask, self.config.num_hidden_layers - 1)

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Next-token scores [B, L, vocab_size]; the embedding is the head (tied)."""
        if not self.language_model:
            raise ValueError(
                "built without its last layer: pass language_model=True to get next-token scores"
            )
        return self.head(self.model.norm(self._run(input_ids, attention_mask, self.config.num_hidden_layers)))

    def next_logits(self, input_ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Scores [B, vocab_size] of the token after input_ids [B, L], which are added to the cache.

        The first call brings all of the prompt, the others what comes next. One token costs the reading of
        the weights, on any device, and is computed in the cache's type; a prompt in `compute_dtype` of it.
        """
        length = input_ids.shape[1]
        if cache.length and length > 1:
            raise ValueError(f"{length} tokens after the first {cache.length}: one at a time")
        cos, sin = (table[cache.length : cache.length + length] for table in cache.rotation)
        several = compute_dtype(cache.dtype, cache.device)
        x = self.embed(input_ids, several if length > 1 else cache.dtype)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, cos, sin, None, partial(cache.extend, index))
        cache.length += length
        return self.head(self.model.norm(x[:, -1]).to(cache.dtype))

    def embed(self, input_ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.model.embed_tokens(input_ids).to(dtype)

    def head(self, hidden: Tensor) -> Tensor:
        return operations.linear(hidden, self.model.embed_tokens.weight)

    def _run(self, input_ids: Tensor, attention_mask: Tensor | None, layers: int) -> Tensor:
        embedding = self.model.embed_tokens.weight
        x = self.embed(input_ids, compute_dtype(embedding.dtype, embedding.device))
        length = input_ids.shape[1]
        cos, sin = half_rotation(length, self.config, x.device)
        mask = None
        if attention_mask is not None and not bool(attention_mask.all()):
            causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            mask = causal & (
                attention_mask.bool()[:, None, None] | torch.eye(length, dtype=torch.bool, device=x.device)
            )
        for layer in self.model.layers[:layers]:
            x = layer(x, cos, sin, mask)
        return x
