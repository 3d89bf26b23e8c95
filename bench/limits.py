"""What a forward cannot do without: the matrix products of its blocks and its attention, in closed form."""

from __future__ import annotations

from zimage_core import S3DiTConfig


def tokens(config: S3DiTConfig, pixels: int) -> int:
    """Of a square picture, padded as the model pads it."""
    count = (pixels // 8 // config.patch_size) ** 2
    return count + -count % config.pad_multiple


def products(config: S3DiTConfig, length: int) -> int:
    """FLOPs of one block's linears on as many tokens; every head has keys and values of its own."""
    return 2 * length * (4 * config.dim**2 + 3 * config.dim * config.ffn_dim)


def attention(config: S3DiTConfig, length: int) -> int:
    """FLOPs of one block's two attention products."""
    return 4 * length**2 * config.dim


def forward(config: S3DiTConfig, image: int, caption: int, refined: bool = True) -> tuple[int, int]:
    """FLOPs of all blocks on image and caption tokens, as (products, attention).

    Timestep part, embedders and final layer are left out. refined: the caption's own refiner ran before, as
    it does once in a run.
    """
    stacks = [(config.n_refiner_layers, image), (config.n_layers, image + caption)]
    if not refined:
        stacks.append((config.n_refiner_layers, caption))
    return tuple(
        sum(layers * flops(config, length) for layers, length in stacks) for flops in (products, attention)
    )
