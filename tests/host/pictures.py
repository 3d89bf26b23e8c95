"""What tests ask of the pictures that a graph made."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tests.host.server import ComfyServer, Result


def explained(result: Result) -> str:
    """For assertion messages: why a graph did not succeed."""
    errors = [f"{error['class_type']}: {error['message'].strip()}" for error in result.errors]
    return "; ".join(errors) or "no error was reported"


def saved_images(server: ComfyServer, result: Result) -> list[Image.Image]:
    assert result.ok, explained(result)
    images = [image for output in result.outputs.values() for image in output.get("images", [])]
    entries = [image for image in images if image["type"] == "output"]  # not what PreviewImage shows
    return [Image.open(io.BytesIO(server.view(entry))) for entry in entries]


def pixels(image: Image.Image) -> np.ndarray:
    """[height, width, 3], 0 to 255, in a type that can be subtracted."""
    return np.asarray(image.convert("RGB")).astype(np.int16)


def picture(server: ComfyServer, result: Result) -> np.ndarray:
    """The pixels of the one saved picture."""
    images = saved_images(server, result)
    assert len(images) == 1
    return pixels(images[0])


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(first - second).mean())
