"""An independent float64 forward of the published S3-DiT, on diffusers' parameter names.

Slow and plain on purpose. It shares no code with zimage_core: complex rotary numbers, per-sample lists, no
batching, no caches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def sinusoid(t: float, half: int = 128) -> Tensor:
    freqs = torch.tensor([math.exp(-math.log(10000) * j / half) for j in range(half)], dtype=torch.float64)
    return torch.cat((torch.cos(t * freqs), torch.sin(t * freqs)))


def rotary(positions: list[tuple[float, float, float]], axes: tuple[int, ...], theta: float) -> Tensor:
    rows = []
    for position in positions:
        angles = [
            p / theta ** (2 * k / d) for p, d in zip(position, axes, strict=True) for k in range(d // 2)
        ]
        rows.append(torch.tensor(angles, dtype=torch.float64))
    angle = torch.stack(rows)
    return torch.polar(torch.ones_like(angle), angle)  # [S, head_dim / 2]


class Reference:
    def __init__(
        self, state: dict[str, Tensor], heads: int, axes: tuple[int, ...], theta: float, eps: float = 1e-5
    ):
        self.w = {k: v.double() for k, v in state.items()}
        self.heads, self.axes, self.theta, self.eps = heads, axes, theta, eps

    def linear(self, name: str, x: Tensor) -> Tensor:
        out = x @ self.w[f"{name}.weight"].T
        return out + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else out

    def attention(self, name: str, x: Tensor, freqs: Tensor) -> Tensor:
        q, k, v = (self.linear(f"{name}.to_{p}", x).unflatten(-1, (self.heads, -1)) for p in "qkv")
        q, k = (
            rms(q, self.w[f"{name}.norm_q.weight"], self.eps),
            rms(k, self.w[f"{name}.norm_k.weight"], self.eps),
        )

        def turn(t: Tensor) -> Tensor:
            pairs = torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous())
            return torch.view_as_real(pairs * freqs[:, None]).flatten(-2)

        q, k = turn(q), turn(k)
        out = []
        for h in range(self.heads):
            scores = q[:, h] @ k[:, h].T / math.sqrt(q.shape[-1])
            out.append(torch.softmax(scores, -1) @ v[:, h])
        return self.linear(f"{name}.to_out.0", torch.cat(out, -1))

    def block(self, name: str, x: Tensor, freqs: Tensor, c: Tensor | None = None) -> Tensor:
        def norm(part: str, t: Tensor) -> Tensor:
            return rms(t, self.w[f"{name}.{part}.weight"], self.eps)

        def feed(t: Tensor) -> Tensor:
            gate = self.linear(f"{name}.feed_forward.w1", t)
            return self.linear(
                f"{name}.feed_forward.w2",
                gate * torch.sigmoid(gate) * self.linear(f"{name}.feed_forward.w3", t),
            )

        if c is None:
            x = x + norm(
                "attention_norm2", self.attention(f"{name}.attention", norm("attention_norm1", x), freqs)
            )
            return x + norm("ffn_norm2", feed(norm("ffn_norm1", x)))
        sa, ga, sm, gm = self.linear(f"{name}.adaLN_modulation.0", c).chunk(4)
        attended = self.attention(f"{name}.attention", norm("attention_norm1", x) * (1 + sa), freqs)
        x = x + torch.tanh(ga) * norm("attention_norm2", attended)
        return x + torch.tanh(gm) * norm("ffn_norm2", feed(norm("ffn_norm1", x) * (1 + sm)))

    def count(self, stack: str) -> int:
        return len({k.split(".")[1] for k in self.w if k.startswith(stack + ".")})

    def __call__(self, latent: Tensor, sigma: float, caption: Tensor) -> Tensor:
        """latent: [C, H, W] of even size; caption: [L, cap_feat_dim]. Returns the velocity noise - clean."""
        latent, caption = latent.double(), caption.double()
        channels, height, width = latent.shape
        hidden = torch.nn.functional.silu(self.linear("t_embedder.mlp.0", sinusoid((1 - sigma) * 1000.0)))
        c = self.linear("t_embedder.mlp.2", hidden)

        length = math.ceil(len(caption) / 32) * 32
        text = self.linear("cap_embedder.1", rms(caption, self.w["cap_embedder.0.weight"], self.eps))
        text = torch.cat((text, self.w["cap_pad_token"].expand(length - len(text), -1)))
        text_freqs = rotary([(i + 1, 0, 0) for i in range(length)], self.axes, self.theta)

        tokens, positions = [], []
        for row in range(height // 2):
            for column in range(width // 2):
                patch = latent[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                tokens.append(patch.permute(1, 2, 0).reshape(-1))
                positions.append((length + 1, row, column))
        count = len(tokens)
        image = self.linear("all_x_embedder.2-1", torch.stack(tokens))
        pads = -count % 32
        image = torch.cat((image, self.w["x_pad_token"].expand(pads, -1)))
        image_freqs = rotary(positions + [(0, 0, 0)] * pads, self.axes, self.theta)

        for i in range(self.count("noise_refiner")):
            image = self.block(f"noise_refiner.{i}", image, image_freqs, c)
        for i in range(self.count("context_refiner")):
            text = self.block(f"context_refiner.{i}", text, text_freqs)
        x, freqs = torch.cat((image, text)), torch.cat((image_freqs, text_freqs))
        for i in range(self.count("layers")):
            x = self.block(f"layers.{i}", x, freqs, c)

        x = x[:count]
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)
        scale = self.linear("all_final_layer.2-1.adaLN_modulation.1", torch.nn.functional.silu(c))
        x = self.linear("all_final_layer.2-1.linear", x * (1 + scale))
        out = torch.zeros_like(latent)
        for i, patch in enumerate(x):
            row, column = divmod(i, width // 2)
            out[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch.reshape(
                2, 2, channels
            ).permute(2, 0, 1)
        return -out
