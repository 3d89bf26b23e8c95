"""Which sizes a model draws: what lies far outside gives a plain square or a torn picture."""

from __future__ import annotations

from ..config import NanoConfig, S3DiTConfig

NANO = NanoConfig()
NANO_LARGEST = 256  # pixels of a side; at more nothing is left of what was asked for
WELL = 512  # pixels of a side of the smallest square that the full-size models draw well
SMALLEST = 256  # less is hardly a picture


class UnfitSize(ValueError):
    """The model cannot draw a picture of this size; the message says which node to change."""


def size_note(config: S3DiTConfig, width: int, height: int, fresh: bool) -> str | None:
    """What to change where the model does not draw width x height pixels well, or None.

    fresh: it starts from pure noise. A picture that is only changed keeps its form at any size.
    Raises UnfitSize where a fresh picture would show nothing.
    """
    if (config.dim, config.n_layers) == (NANO.transformer.dim, NANO.transformer.n_layers):
        side = NANO.resolution
        found = f"nano draws {side}x{side} pixels only, the latent is {width}x{height}"
        todo = (
            f"choose {side}x{side} (nano) as size in Z-Image Latent, or scale the given picture to it; for "
            "other sizes choose full-size weights in Z-Image Loader."
        )
        right, hopeless = (width, height) == (side, side), max(width, height) > NANO_LARGEST
    elif config.full_size:
        found = f"Z-Image draws {WELL}x{WELL} pixels and more well, the latent is {width}x{height}"
        todo = "choose 1024x1024 or another official size in Z-Image Latent, or scale the given picture up."
        right, hopeless = width * height >= WELL**2, width * height < SMALLEST**2
    else:
        return None
    if right:
        return None
    if hopeless and fresh:
        raise UnfitSize(f"{found}: {todo}")
    return f"{found}: for a better picture {todo}"
