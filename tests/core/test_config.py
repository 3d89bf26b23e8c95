"""Numbers of the model family against those that other implementations have written down."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from diffusers import ZImagePipeline as Peer
from diffusers import ZImageTransformer2DModel

from zimage_core import AutoencoderConfig, S3DiTConfig, ZImagePipeline
from zimage_core.config import (
    LATENT_DOWNSCALE,
    REFERENCE_MAX_TOKENS,
    SIZE_BUCKETS,
    SIZE_MULTIPLE,
    ControlConfig,
)


def defaults(function: Callable) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def test_the_transformer_is_that_of_diffusers() -> None:
    theirs, ours = defaults(ZImageTransformer2DModel.__init__), S3DiTConfig()
    for name in (
        "dim", "n_layers", "n_refiner_layers", "n_heads", "n_kv_heads", "norm_eps", "in_channels",
        "cap_feat_dim", "rope_theta", "t_scale",
    ):  # fmt: skip
        assert getattr(ours, name) == theirs[name], name
    assert list(ours.axes_dims) == theirs["axes_dims"] and [ours.patch_size] == list(theirs["all_patch_size"])


def test_a_prompt_is_cut_where_diffusers_cuts_it() -> None:
    theirs = defaults(Peer.__call__)["max_sequence_length"]
    assert REFERENCE_MAX_TOKENS == defaults(ZImagePipeline.__call__)["max_sequence_length"] == theirs


def test_a_latent_cell_is_the_autoencoders() -> None:
    assert LATENT_DOWNSCALE == AutoencoderConfig().downscale
    assert SIZE_MULTIPLE == LATENT_DOWNSCALE * S3DiTConfig().patch_size


@pytest.mark.parametrize("name", SIZE_BUCKETS)
def test_sizes_are_what_they_are_called_and_fit_the_model(name: str) -> None:
    width, height = SIZE_BUCKETS[name]
    assert name.split(" ")[0] == f"{width}x{height}"
    assert width % 16 == height % 16 == 0
    assert (height, width) in SIZE_BUCKETS.values(), "each also lies on its side"


@pytest.mark.parametrize("square", [1024, 1280, 1536])
def test_sizes_have_about_the_area_of_their_square(square: int) -> None:
    """Eleven after each other: the square, and five shapes that lie or stand."""
    sizes = list(SIZE_BUCKETS.values())
    first = sizes.index((square, square))
    assert all(0.7 < width * height / square**2 < 1.01 for width, height in sizes[first : first + 11])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 256, "n_heads": 3}, "dim 256 .* n_heads 3"),
        ({"dim": 256, "n_heads": 4, "n_kv_heads": 3, "axes_dims": (16, 24, 24)}, "n_heads 4 .* n_kv_heads 3"),
        ({"dim": 256, "n_heads": 2, "axes_dims": (32, 48, 46)}, "add up to 126, the head has 128"),
        ({"dim": 256, "n_heads": 2, "axes_dims": (31, 49, 48)}, "must be even"),
    ],
)
def test_sizes_that_contradict_each_other_are_named(sizes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S3DiTConfig(**sizes)


@pytest.mark.parametrize(
    ("routing", "channels", "told"),
    [
        ("tokens", 16, "version 1.0, 6 blocks"),
        ("layers", 33, "version 2.0, 6 blocks, can inpaint"),
        ("refiner", 33, "version 2.1, 6 blocks, can inpaint"),
        ("refiner", 17, "version 2.1, 6 blocks, can inpaint"),
    ],
)
def test_a_control_tells_its_version(routing: str, channels: int, told: str) -> None:
    assert ControlConfig(S3DiTConfig(n_layers=6), channels, routing).summary == told
