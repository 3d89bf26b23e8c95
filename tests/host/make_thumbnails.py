"""Writes each shipped workflow's thumbnail: the picture that the workflow makes as it stands.

COMFYUI_PATH=.host/ComfyUI-0.3.75 .venv/bin/python -m tests.host.make_thumbnails [workflow ...]
"""

import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.host import graphs
from tests.host.pictures import saved_images
from tests.host.server import ComfyServer

SIDE = 384  # pixels


def main(names: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(Path(os.environ["COMFYUI_PATH"]), Path(base), "--disable-api-nodes") as server,
    ):
        for name in names or graphs.NAMES:
            image = saved_images(server, server.run(graphs.api_form(name)))[0].convert("RGB")
            image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            image.save(graphs.WORKFLOWS / f"{name}.jpg", quality=90)


if __name__ == "__main__":
    main(sys.argv[1:])
