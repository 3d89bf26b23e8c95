"""Empty latents in the sizes that Z-Image was trained on."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.config import LATENT_DOWNSCALE, SIZE_BUCKETS, SIZE_MULTIPLE, S3DiTConfig
from .host.page.schema import schema
from .host.running.sampling import empty_latent

CUSTOM = "custom"


class ZImageLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(
                name,
                default=1024,
                min=SIZE_MULTIPLE,
                max=8192,
                step=SIZE_MULTIPLE,
                tooltip=f"{name.capitalize()} in pixels when size is custom, in steps of {SIZE_MULTIPLE}. "
                "Z-Image is at its best between 512x512 and 2048x2048 pixels in all.",
            )

        return schema(
            node_id="ZImageLatent",
            display_name="Z-Image Latent",
            category="Z-Image/latent",
            description="An empty latent in one of the official sizes, or your own.",
            search_aliases=["empty latent", "resolution", "size"],
            inputs=[
                io.Combo.Input(
                    "size",
                    options=[*SIZE_BUCKETS, CUSTOM],
                    tooltip="Width x height in pixels, from the official list. 128x128 is for the built-in "
                    "nano model.",
                ),
                side("width"),
                side("height"),
                io.Boolean.Input(
                    "swap", default=False, tooltip="Swap width and height: landscape becomes portrait."
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="Pictures per run; memory grows with it."
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="Empty, 16 channels, an eighth of the picture's size."
                ),
                io.Int.Output(display_name="width", tooltip="The width in pixels that was used."),
                io.Int.Output(display_name="height", tooltip="The height in pixels that was used."),
            ],
        )

    @classmethod
    def execute(cls, size: str, width: int, height: int, swap: bool, batch_size: int) -> io.NodeOutput:
        if size != CUSTOM:
            if size not in SIZE_BUCKETS:
                raise ValueError(f"size is {size!r}, expected one of the list or {CUSTOM!r}")
            width, height = SIZE_BUCKETS[size]
        if width % SIZE_MULTIPLE or height % SIZE_MULTIPLE:
            raise ValueError(f"{width}x{height} pixels: both sides must be multiples of {SIZE_MULTIPLE}")
        if swap:
            width, height = height, width
        shape = (batch_size, S3DiTConfig.in_channels, height // LATENT_DOWNSCALE, width // LATENT_DOWNSCALE)
        return io.NodeOutput(empty_latent(shape), width, height)
