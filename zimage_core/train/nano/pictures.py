"""The training pictures: emoji drawings on plain backgrounds, and which of them are held out."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
SIZE = 128  # pixels, square
SMALL = 56  # pixels: a second thing's whole picture is scaled to this, its drawing to 46
SMALL_BOX = slice(SIZE - SMALL - 2, SIZE - 2)  # rows and columns of it
DRAWING = 104  # the drawing is scaled to this, centred: an even margin on which a plain background shows

# npm packages of the data: name, version, folder made of both, sha256 of the archive
EMOJI = (
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)
NAMES = (
    "cldr-annotations-full",
    "48.2.0",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
)


@dataclass(frozen=True)
class Colour:
    """One background: `rgb` in 0..255 and its name per language."""

    id: str
    rgb: tuple[int, int, int]
    en: str
    zh: str

    @property
    def pixel(self) -> Tensor:
        """The colour as [3,1,1] in [-1,1]."""
        return torch.tensor(self.rgb, dtype=torch.float32).view(3, 1, 1) / 127.5 - 1


def colours() -> list[Colour]:
    """The background colours of the training set, in their fixed order."""
    rows = json.loads((HERE / "colours.json").read_text("utf-8"))["colours"]
    return [Colour(r["id"], tuple(r["rgb"]), r["en"], r["zh"]) for r in rows]


def concept_codes() -> list[str]:
    """Code points (lower-case hex) of the concepts, in their fixed order."""
    return json.loads((HERE / "concepts.json").read_text("utf-8"))["concepts"]


def package(data: Path, spec: tuple[str, str, str]) -> Path:
    """The unpacked npm package under `data`, fetched with `npm pack` when it is not there yet.

    Raises RuntimeError when npm is missing or fails, ValueError when the archive is not the expected one.
    """
    name, version, digest = spec
    stem = f"{name.lstrip('@').replace('/', '-')}-{version}"
    folder = data / stem / "package"
    if folder.is_dir():
        return folder
    data.mkdir(parents=True, exist_ok=True)
    archive = data / f"{stem}.tgz"
    if not archive.is_file():
        if shutil.which("npm") is None:
            raise RuntimeError(
                f"npm is needed to fetch {name}@{version}; or put its unpacked archive at {folder}"
            )
        log.info("fetching %s@%s into %s", name, version, data)
        done = subprocess.run(
            ["npm", "pack", f"{name}@{version}", "--pack-destination", str(data)],
            capture_output=True,
            text=True,
        )
        if done.returncode or not archive.is_file():
            raise RuntimeError(f"npm pack {name}@{version} failed: {done.stderr.strip()[-400:]}")
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != digest:
        raise ValueError(f"{archive}: sha256 is {actual}, expected {digest}; delete it and run again")
    partial = data / f"{stem}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    partial.rename(data / stem)
    return folder


def is_held_out(stem: str, concepts: set[str]) -> bool:
    """Whether the emoji file `stem` (code points joined by '-') is never shown to the autoencoder.

    Decided by the first code point, so that skin tones, genders and joined variants of one drawing go
    together; about a tenth. The concepts' own drawings are always trained on.
    """
    first = stem.split("-")[0]
    return first not in concepts and int(hashlib.sha256(first.encode()).hexdigest(), 16) % 10 == 0


def load_drawing(path: Path) -> np.ndarray:
    """One picture file -> premultiplied RGBA [128,128,4] uint8, the drawing centred with its margin."""
    with Image.open(path) as image:
        image = image.convert("RGBa").resize((DRAWING, DRAWING), Image.LANCZOS)
        canvas = Image.new("RGBa", (SIZE, SIZE))
        canvas.paste(image, ((SIZE - DRAWING) // 2,) * 2)
    return np.frombuffer(canvas.tobytes(), np.uint8).reshape(SIZE, SIZE, 4)


def load_drawings(data: Path, cache: Path | None = None) -> tuple[list[str], np.ndarray]:
    """All emoji -> (file stems, premultiplied RGBA [N,128,128,4] uint8).

    They are kept in `cache`, because decoding takes a while.
    """
    files = sorted((package(data, EMOJI) / "assets").glob("*.webp"))
    stems = [f.stem for f in files]
    if cache is not None and cache.is_file():
        stored = np.load(cache, mmap_mode="r")
        if len(stored) == len(files):
            return stems, stored
    pictures = np.stack([load_drawing(f) for f in files])
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, pictures)
    return stems, pictures


def on_background(drawings: Tensor, background: Tensor) -> Tensor:
    """Premultiplied drawings over colours -> pictures, float [B,3,H,W] in [-1,1].

    drawings: uint8 [B,H,W,4]; colours: [B,3,1,1] in [-1,1].
    """
    rgba = drawings.permute(0, 3, 1, 2).float() / 255
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    over = rgb + (1 - alpha) * (background + 1) / 2  # resizing lets a colour exceed its alpha a little
    return over.clamp(0, 1) * 2 - 1


def with_small(drawings: Tensor, second: Tensor) -> Tensor:
    """A second drawing, made small, over the bottom right corner of each.

    Both are premultiplied, uint8 [B,H,W,4].
    """
    shrunk = F.interpolate(
        second.permute(0, 3, 1, 2).float(), size=(SMALL, SMALL), mode="bilinear", antialias=True
    )
    shrunk = shrunk.permute(0, 2, 3, 1)
    out = drawings.float()
    corner = out[:, SMALL_BOX, SMALL_BOX]
    out[:, SMALL_BOX, SMALL_BOX] = shrunk + corner * (1 - shrunk[..., 3:] / 255)
    return out.round().clamp(0, 255).to(torch.uint8)


def stem_index(stems: list[str], code: str) -> int:
    """Where the file of a single code point is; some carry the emoji variation selector.

    Raises ValueError when there is none.
    """
    for name in (code, f"{code}-fe0f"):
        if name in stems:
            return stems.index(name)
    raise ValueError(f"the pictures have no file for U+{code.upper()}")
