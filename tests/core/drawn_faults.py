"""Drawings of random shapes with planted faults, made without any data: each kind of fault as often."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 192
WORDS = ("SAMPLE", "PREVIEW", "DO NOT COPY", "STOCK")
KINDS = ("blurred", "tinted")  # text takes half a second to look for
COPIES = {"exact": "exact copy", "re-encoded": "copy", "cropped": "part"}


def drawing(dice: random.Random) -> Image.Image:
    """Sharp shapes in many colours on a background that runs from one grey into another."""
    top, bottom = dice.randint(170, 250), dice.randint(170, 250)
    rows = np.linspace(top, bottom, 2 * SIDE)[:, None, None].repeat(2 * SIDE, 1).repeat(3, 2)
    image = Image.fromarray(rows.round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(dice.randint(6, 9)):
        x, y, size = dice.randint(20, 300), dice.randint(20, 300), dice.randint(30, 120)
        colour = tuple(dice.randint(0, 255) for _ in range(3))
        kind = dice.choice(("ellipse", "rectangle", "polygon"))
        if kind == "polygon":
            pen.regular_polygon((x, y, size // 2), dice.randint(3, 6), dice.randint(0, 90), fill=colour)
        else:
            getattr(pen, kind)((x, y, x + size, y + dice.randint(20, size)), fill=colour)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def encoded(image: Image.Image, kind: str = "PNG", **how: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def spoilt(fault: str, image: Image.Image, dice: random.Random) -> bytes:
    if fault == "blurred":
        return encoded(image.filter(ImageFilter.GaussianBlur(dice.uniform(2.5, 4))))
    if fault == "tinted":
        gains = [1.0, dice.uniform(0.6, 0.8), dice.uniform(0.4, 0.5)]
        dice.shuffle(gains)
        return encoded(Image.fromarray((np.asarray(image) * gains).astype(np.uint8)))
    how = {"anchor": "mm", "font_size": 22, "stroke_width": 3, "stroke_fill": "white"}
    place = (SIDE // 2, dice.randint(30, SIDE - 30))
    ImageDraw.Draw(image).text(place, dice.choice(WORDS), "black", **how)
    return encoded(image)


def copied(fault: str, image: Image.Image, dice: random.Random) -> bytes:
    if fault == "exact":
        return encoded(image)
    if fault == "re-encoded":
        side = dice.choice((128, SIDE))
        return encoded(image.resize((side, side)), "JPEG", quality=dice.randint(40, 80))
    width, height = (int(SIDE * dice.uniform(0.7, 0.9)) for _ in "wh")
    left, top = dice.randint(0, SIDE - width), dice.randint(0, SIDE - height)
    return encoded(image.crop((left, top, left + width, top + height)), "JPEG", quality=80)


def plant(folder: Path, seed: int, each: int, clean: int, kinds: Sequence[str] = KINDS) -> dict[str, str]:
    """Write data.jsonl and the pictures; returns the faults by file name. Originals come before copies."""
    dice, faults, rows = random.Random(seed), {}, []
    folder.mkdir(parents=True, exist_ok=True)

    def add(content: bytes, fault: str = "") -> None:
        name = f"{len(rows):04}.{'png' if content.startswith(bytes([0x89])) else 'jpg'}"
        (folder / name).write_bytes(content)
        rows.append({"image_path": name, "caption": "shapes"})
        if fault:
            faults[name] = fault

    originals = [drawing(dice) for _ in range(clean)]
    for image in originals:
        add(encoded(image))
    for fault in kinds:
        for _ in range(each):
            add(spoilt(fault, drawing(dice), dice), fault)
    for fault in COPIES:
        for image in dice.sample(originals, each):
            add(copied(fault, image.copy(), dice), fault)
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return faults
