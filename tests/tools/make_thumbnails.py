"""Writes each shipped workflow's thumbnail: the pictures that the workflow makes as it stands.

COMFYUI_PATH=.host/ComfyUI-0.3.75 .venv/bin/python -m tests.tools.make_thumbnails [workflow ...]

A workflow that needs full-size files shows a picture of the nano model instead, made by the text-to-image
workflow from the prompt below.
"""

import math
import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.host import graphs, weight_files
from tests.host.pictures import saved_images
from tests.host.server import ComfyServer

SIDE = 384  # pixels
STAND_IN_PROMPTS = {"z_image_turbo_accelerate": "a rocket on a black background"}


def graph_of(name: str) -> dict:
    if name not in STAND_IN_PROMPTS:
        return graphs.api_form(name)
    return graphs.changed(
        graphs.api_form("z_image_turbo_text_to_image"), ZImageTextEncode__text=STAND_IN_PROMPTS[name]
    )


def square(images: list[Image.Image]) -> Image.Image:
    """One picture as it is, several as the tiles of a square."""
    across = math.ceil(math.sqrt(len(images)))
    side = SIDE // across
    sheet = Image.new("RGB", (SIDE, SIDE))
    for index, image in enumerate(images):
        tile = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        sheet.paste(tile, (index % across * side, index // across * side))
    return sheet


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as base:
        server = ComfyServer(Path(os.environ["COMFYUI_PATH"]), Path(base), "--disable-api-nodes")
        weight_files.copy_nano_lora(server.base / "models")
        with server:
            for name in names or graphs.NAMES:
                images = saved_images(server, server.run(graph_of(name)))
                square(images).save(graphs.WORKFLOWS / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main(sys.argv[1:])
