"""Empty latents in the sizes that Z-Image was trained on."""

from __future__ import annotations

from comfy_api.latest import io

from ..zimage_core.config import LATENT_DOWNSCALE, SIZE_BUCKETS, SIZE_MULTIPLE, S3DiTConfig
from .host.page.schema import advanced, schema
from .host.running.sampling import empty_latent

CUSTOM = "custom"
LONGEST = 8192  # pixels of a side
MEGAPIXEL = 1024 * 1024  # pixels, as ComfyUI's own nodes count


class ZImageLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def side(name: str) -> io.Int.Input:
            return io.Int.Input(
                name,
                default=1024,
                min=SIZE_MULTIPLE,
                max=LONGEST,
                step=SIZE_MULTIPLE,
                tooltip=f"{name.capitalize()} in pixels when size is custom, in steps of {SIZE_MULTIPLE}. "
                "Z-Image is at its best between 512x512 and 2048x2048 pixels in all.",
            )

        return schema(
            node_id="ZImageLatent",
            display_name="Z-Image Latent",
            category="Z-Image/latent",
            description="An empty latent by shape, such as 16:9 landscape, in one of the official sizes, of "
            "your own size, or in the shape of a picture.",
            search_aliases=["empty latent", "resolution", "size", "aspect ratio", "megapixels"],
            inputs=[
                io.Combo.Input(
                    "size",
                    options=[*SIZE_BUCKETS, CUSTOM],
                    tooltip="Shape and width x height in pixels, from the official list; custom takes the "
                    "sides below. 128x128 is for the built-in nano model, which knows no other.",
                ),
                side("width"),
                side("height"),
                io.Boolean.Input(
                    "swap", default=False, tooltip="Swap width and height: landscape becomes portrait."
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="Pictures per run; memory grows with it."
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="A picture whose size the latent gets, in place of size, width and height. Only "
                    "its size is read.",
                ),
                advanced(
                    io.Float,
                    "megapixels",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.05,
                    optional=True,
                    tooltip="The same shape with about so many megapixels: 1 is as many pixels as "
                    "1024x1024. 0 leaves the size as it is.",
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
    def execute(
        cls,
        size: str,
        width: int,
        height: int,
        swap: bool,
        batch_size: int,
        image: object = None,
        megapixels: float = 0.0,
    ) -> io.NodeOutput:
        if image is not None:
            height, width = image.shape[1:3]
        elif size != CUSTOM:
            if size not in SIZE_BUCKETS:
                raise ValueError(f"size is {size!r}, expected one of the list or {CUSTOM!r}")
            width, height = SIZE_BUCKETS[size]
        elif width % SIZE_MULTIPLE or height % SIZE_MULTIPLE:
            raise ValueError(f"{width}x{height} pixels: both sides must be multiples of {SIZE_MULTIPLE}")
        factor = (megapixels * MEGAPIXEL / (width * height)) ** 0.5 or 1
        width, height = (
            max(round(side * factor / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE for side in (width, height)
        )
        if max(width, height) > LONGEST:
            raise ValueError(
                f"{width}x{height} pixels: a side can be {LONGEST} at most. Take fewer megapixels (1 is "
                "1024x1024), or crop the picture."
            )
        if swap:
            width, height = height, width
        shape = (batch_size, S3DiTConfig.in_channels, height // LATENT_DOWNSCALE, width // LATENT_DOWNSCALE)
        used = None if image is None else {"size": (width, height)}  # the page cannot know it before the run
        return io.NodeOutput(empty_latent(shape), width, height, ui=used)
