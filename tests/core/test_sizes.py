"""At which sizes a model is said to draw badly, or refused."""

from __future__ import annotations

import pytest

from zimage_core.config import SIZE_BUCKETS, NanoConfig, S3DiTConfig
from zimage_core.sampling.sizes import UnfitSize, size_note

NANO, REAL = NanoConfig().transformer, S3DiTConfig()


def kind(config: S3DiTConfig, width: int, height: int, fresh: bool) -> str:
    try:
        note = size_note(config, width, height, fresh)
    except UnfitSize as error:
        assert f"{width}x{height}" in str(error) and "Z-Image Latent" in str(error)
        return "error"
    if note is not None:
        assert f"{width}x{height}" in note and "Z-Image Latent" in note
    return "good" if note is None else "note"


@pytest.mark.parametrize(
    "config, width, height, fresh, changed",
    [
        (NANO, 128, 128, "good", "good"),
        (NANO, 64, 64, "note", "note"),
        (NANO, 256, 256, "note", "note"),
        (NANO, 272, 128, "error", "note"),
        (NANO, 1024, 1024, "error", "note"),
        (REAL, 512, 512, "good", "good"),
        (REAL, 720, 400, "good", "good"),
        (REAL, 496, 512, "note", "note"),
        (REAL, 256, 256, "note", "note"),
        (REAL, 128, 128, "error", "note"),
        (REAL, 1024, 48, "error", "note"),
        (REAL, 4096, 4096, "good", "good"),
    ],
)
def test_sizes(config: S3DiTConfig, width: int, height: int, fresh: str, changed: str) -> None:
    """fresh: from pure noise; changed: a picture that keeps something of the one it starts from."""
    assert kind(config, width, height, True) == fresh
    assert kind(config, width, height, False) == changed


def test_every_official_size_suits_its_model() -> None:
    for name, (width, height) in SIZE_BUCKETS.items():
        assert kind(NANO if "nano" in name else REAL, width, height, True) == "good", name


def test_of_models_of_other_sizes_nothing_is_known() -> None:
    assert size_note(S3DiTConfig(n_layers=2), 64, 64, True) is None
