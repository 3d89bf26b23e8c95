"""One picture file of a stranger -> pixels, within limits and with plain words for what is wrong."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

# By content: other formats of Pillow start programs (EPS) or are no pictures for training.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
ORIENTATION = 0x0112  # of EXIF
TURNED = range(5, 9)  # its values that exchange width and height
WIDE_MODES = ("I", "F")  # 16 bits and more: "I", "I;16", "I;16B" and "F"


@dataclass(frozen=True)
class Limits:
    """What a data set may hold; more is named and left out, or cut where that is said."""

    pictures: int = 1_000_000
    pixels: int = 80_000_000  # of one picture; Pillow itself warns from 89 million on
    characters: int = 8_192  # of one caption
    line_bytes: int = 1 << 20  # of one line of a jsonl


LIMITS = Limits()


class PictureError(ValueError):
    """A file that gives no picture; the message says why, without its name."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself. size: (width, height) as the picture is seen, upright."""

    size: tuple[int, int]
    is_animated: bool
    has_alpha: bool


def read_header(path: str | os.PathLike, limits: Limits = LIMITS) -> Header:
    """Without decoding. Raises PictureError."""
    with _opened(path, limits) as image:
        return _guarded(_header, image)


def open_picture(path: str | os.PathLike, limits: Limits = LIMITS) -> Image.Image:
    """The first frame, upright, with 8 bits a channel, as RGB, or as RGBA where it has transparency.

    Raises PictureError, also for a file that ends too early.
    """
    with _opened(path, limits) as image:
        return _guarded(_decoded, image)


def flattened(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """As RGB: what is transparent shows the background."""
    if image.mode == "RGB":
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def _opened(path: str | os.PathLike, limits: Limits) -> Image.Image:
    if not Path(path).is_file():  # a pipe would be waited for
        raise PictureError("there is no such file" if not Path(path).exists() else "it is no plain file")
    if os.path.getsize(path) == 0:
        raise PictureError("the file is empty (0 bytes)")
    image = _guarded(lambda name: Image.open(name, formats=FORMATS), path)
    width, height = image.size
    if width * height > limits.pixels:
        image.close()
        raise PictureError(
            f"it says that it has {width} x {height} pixels, more than the {limits.pixels:,} of the limit"
        )
    return image


def _guarded(read, given):
    """Damaged files make Pillow's readers raise errors of nearly every kind."""
    try:
        return read(given)
    except Image.UnidentifiedImageError:
        raise PictureError(f"it is no picture of the kinds {', '.join(FORMATS)}") from None
    except Exception as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise PictureError(f"it cannot be read: {said}") from None


def _header(image: Image.Image) -> Header:
    width, height = image.size
    if image.getexif().get(ORIENTATION) in TURNED:
        width, height = height, width
    alpha = "A" in image.getbands() or "transparency" in image.info
    return Header((width, height), bool(getattr(image, "is_animated", False)), alpha)


def _decoded(image: Image.Image) -> Image.Image:
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(WIDE_MODES):  # Pillow would clip what is above 255
        high = image.getextrema()[1]
        top = 65535 if image.mode.startswith("I;16") or high > 255 else 1 if high <= 1 else 255
        image = image.convert("F").point(lambda value: value * (255 / top)).convert("L")
    alpha = "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if alpha else "RGB")
