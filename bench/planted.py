"""Folders of emoji with planted faults: what `bench data` must find, and what it must leave alone.

A set is made of emoji that no other set has. Emoji that show letters, digits or clocks are in none: their
text is no fault.
"""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from zimage_core.train.nano import pictures
from zimage_core.train.nano.captions import Concept, load_concepts

SIZE = 256  # pixels of the drawings as they are published
EACH = 40  # pictures of each fault
KNOWN = 63  # concepts of the nano model in each set
TOTAL = 600
# Of the nano model's backgrounds those without a colour: of a yellow face on plain yellow nobody can say
# whether it is tinted.
NEUTRAL = [colour for colour in pictures.colours() if colour.id in ("white", "black")]
COPIES = ("exact", "re-encoded", "cropped")
SPOILT = ("blurred", "tinted", "text")
LETTERS = (  # of code points: letters, digits and signs in boxes, clocks; money, marks and arrows
    (0x0023, 0x00AF), (0x2000, 0x25FF), (0x1F170, 0x1F265), (0x1F4B0, 0x1F4CA), (0x1F4C5, 0x1F4C6),
    (0x1F500, 0x1F567), (0x1F51E, 0x1F524), (0x1F6AB, 0x1F6C5), (0x3030, 0x3299), (0x1F1E6, 0x1F1FF),
    (0x2648, 0x2653), (0x2600, 0x27BF), (0x2934, 0x2B55), (0x1F18E, 0x1F19A), (0x1F3E7, 0x1F3E7),
    (0x1F6D1, 0x1F6D1), (0x1F3B0, 0x1F3B1), (0x1F5D1, 0x1F5DE),
)  # fmt: skip
WORDS = ("SAMPLE", "PREVIEW", "STOCK IMAGE", "DO NOT COPY", "WWW.EXAMPLE.COM", "COPYRIGHT 2019", "DRAFT")


@dataclass(frozen=True)
class Set:
    """A folder of pictures: data.jsonl in it, and the planted faults by file name."""

    folder: Path
    faults: dict[str, str]  # file name -> fault
    originals: dict[str, str]  # file name of a copy -> of what it was copied from
    known: dict[str, int]  # file name -> number of the nano model's concept that it shows


def usable(stems: list[str], concepts: list[Concept]) -> list[str]:
    """One file per first code point, without letters and without the nano model's own concepts."""
    taken, found = {concept.code for concept in concepts}, {}
    for stem in stems:
        first = stem.split("-")[0]
        value = int(first, 16)
        if first not in taken and not any(low <= value <= high for low, high in LETTERS):
            found.setdefault(first, stem)
    return sorted(found.values())


def draw(assets: Path, stem: str, background: Image.Image, dice: random.Random) -> Image.Image:
    """The drawing over a background, at a size and place of its own."""
    with Image.open(assets / f"{stem}.webp") as image:
        side = int(SIZE * dice.uniform(0.72, 0.92))
        image = image.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS).convert("RGBA")
    out = background.convert("RGBA")
    room = SIZE - side
    out.alpha_composite(image, (dice.randint(0, room), dice.randint(0, room)))
    return out.convert("RGB")


def background(dice: random.Random) -> Image.Image:
    """A colour that runs into another from top to bottom: greys, and as often the colours of the palette."""
    if dice.random() < 0.5:
        ends = [(dice.randint(120, 250),) * 3 for _ in range(2)]
    else:
        ends = [dice.choice(pictures.colours()).rgb, (dice.randint(200, 250),) * 3]
    rows = np.linspace(*map(np.array, ends), SIZE)[:, None].repeat(SIZE, 1)
    return Image.fromarray(rows.round().astype(np.uint8))


def plain(colour: pictures.Colour) -> Image.Image:
    return Image.new("RGB", (SIZE, SIZE), colour.rgb)


def encoded(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def copied(fault: str, image: Image.Image, dice: random.Random) -> bytes:
    if fault == "re-encoded":
        side = int(SIZE * dice.choice((0.6, 0.8, 1.0)))
        image = image.resize((side, side), Image.Resampling.BICUBIC)
        return encoded(image, "JPEG", quality=dice.randint(40, 80))
    width, height = (int(SIZE * dice.uniform(0.7, 0.9)) for _ in "wh")
    left, top = dice.randint(0, SIZE - width), dice.randint(0, SIZE - height)
    part = image.crop((left, top, left + width, top + height))
    return encoded(part, "JPEG", quality=dice.randint(70, 90))


def spoilt(fault: str, image: Image.Image, dice: random.Random) -> Image.Image:
    if fault == "blurred":
        return image.filter(ImageFilter.GaussianBlur(dice.uniform(3, 5)))
    if fault == "tinted":
        gains = [1.0, dice.uniform(0.6, 0.85), dice.uniform(0.4, 0.55)]
        dice.shuffle(gains)
        return Image.fromarray((np.asarray(image) * gains).round().astype(np.uint8))
    out = image.copy()
    pen = ImageDraw.Draw(out, "RGBA")
    colour = (*dice.choice(((255, 255, 255), (0, 0, 0), (220, 30, 30))), dice.randint(170, 255))
    place = (SIZE // 2, dice.randint(40, SIZE - 40))
    pen.text(place, dice.choice(WORDS), colour, anchor="mm", font_size=dice.randint(20, 28), stroke_width=1)
    return out


def plant(folder: Path, data: Path, seed: int, half: int) -> Set:
    """Write a set from the emoji and concepts of one half (0 or 1)."""
    folder.mkdir(parents=True, exist_ok=True)
    dice, concepts = random.Random(seed), load_concepts(data)
    assets = pictures.package(data, pictures.EMOJI) / "assets"
    names = names_of(data)
    others = usable([file.stem for file in sorted(assets.glob("*.webp"))], concepts)
    random.Random(0).shuffle(others)
    others = others[half::2]
    dice.shuffle(others)
    made = Made(folder)
    ours = list(range(half, len(concepts), 2))[:KNOWN]
    known = [(concept, place) for concept in ours for place in range(len(NEUTRAL))]
    wrong = set(dice.sample(range(len(known)), EACH))
    for number, (concept, place) in enumerate(known):
        code = concepts[concept].code
        stem = code if (assets / f"{code}.webp").is_file() else f"{code}-fe0f"
        colour = NEUTRAL[place]
        shown = dice.choice([c for c in ours if c != concept]) if number in wrong else concept
        caption = f"a picture of a {concepts[shown].names['en'][0]} on a plain {colour.en} background"
        fault = "wrong caption" if number in wrong else ""
        name = made.add(encoded(centred(assets, stem, colour)), caption, fault)
        made.known[name] = concept
    spoilt_count = EACH * len(SPOILT)
    clean = TOTAL - len(known) - EACH * len(COPIES) - spoilt_count
    chosen = iter(others)
    originals = []
    for _ in range(clean):
        stem = next(chosen)
        image = draw(assets, stem, background(dice), dice)
        originals.append((made.add(encoded(image), names.get(stem, stem)), image, names.get(stem, stem)))
    for fault in SPOILT:
        for _ in range(EACH):
            stem = next(chosen)
            image = spoilt(fault, draw(assets, stem, background(dice), dice), dice)
            made.add(encoded(image), names.get(stem, stem), fault)
    sources = dice.sample(originals, EACH * len(COPIES))
    for number, (name, image, caption) in enumerate(sources):
        fault = COPIES[number % len(COPIES)]
        content = encoded(image) if fault == "exact" else copied(fault, image, dice)
        made.originals[made.add(content, caption, fault)] = name
    made.write()
    return Set(folder, made.faults, made.originals, made.known)


def centred(assets: Path, stem: str, colour: pictures.Colour) -> Image.Image:
    """As the nano model's own training pictures, at their size."""
    rgba = pictures.load_drawing(assets / f"{stem}.webp").astype(float)
    over = rgba[..., :3] + (1 - rgba[..., 3:] / 255) * np.array(colour.rgb)
    return Image.fromarray(over.clip(0, 255).round().astype(np.uint8))


def names_of(data: Path) -> dict[str, str]:
    """CLDR's English name of each emoji file's stem, joined ones without their variation selectors."""
    file = pictures.package(data, pictures.NAMES) / "annotations" / "en" / "annotations.json"
    rows = json.loads(file.read_text("utf-8"))["annotations"]["annotations"]
    found = defaultdict(str)
    for text, row in rows.items():
        code = "-".join(f"{ord(c):x}" for c in text)
        if row.get("tts"):
            found[code] = found[f"{code}-fe0f"] = row["tts"][0]
    return dict(found)


class Made:
    """The files of a set in the making; names say nothing of what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, []
        self.faults: dict[str, str] = {}
        self.originals: dict[str, str] = {}
        self.known: dict[str, int] = {}

    def add(self, content: bytes, caption: str, fault: str = "") -> str:
        ending = "png" if content.startswith(b"\x89PNG") else "jpg"
        name = f"{len(self.rows):04}.{ending}"
        (self.folder / name).write_bytes(content)
        self.rows.append({"image_path": name, "caption": caption})
        if fault:
            self.faults[name] = fault
        return name

    def write(self) -> None:
        (self.folder / "data.jsonl").write_text("\n".join(map(json.dumps, self.rows)), "utf-8")
