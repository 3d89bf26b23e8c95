"""Inputs that several sampling nodes have, with the words of each; ranges and defaults are said here once."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.config import SHIFT, TURBO_STEPS
from .host.page.schema import advanced

LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


def seed(tooltip: str) -> io.Int.Input:
    return io.Int.Input(
        "seed", default=0, min=0, max=LARGEST_SEED, control_after_generate=True, tooltip=tooltip
    )


def steps(tooltip: str) -> io.Int.Input:
    return io.Int.Input("steps", default=TURBO_STEPS, min=1, max=1000, tooltip=tooltip)


def shift(tooltip: str, **more: object) -> io.Float.Input:
    settings = {"default": SHIFT, "min": 0.01, "max": 100.0, "step": 0.01}
    return advanced(io.Float, "shift", tooltip=tooltip, **settings, **more)


def guidance_range(default: float) -> dict[str, float]:
    """0 is off; ComfyUI's cfg is one more."""
    return {"default": default, "min": 0.0, "max": 30.0, "step": 0.1}
