"""One look at a picture: what is measured and read in it, and what is kept to find its copies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from ...cluster import installed, named
from ...weights import load_vision_encoder
from .each_picture import Failed, read
from .fingerprints import Fingerprint, fingerprint, perceptual_hashes
from .picture_files import LIMITS, Limits, flattened
from .picture_text import TextLine, TextReader
from .profile import Measures, measure

Embed = Callable[[Image.Image], np.ndarray]  # RGB or RGBA -> [width]


class VisionEmbedder:
    """The mean feature of SigLIP 2's vision encoder in a file, of full size or small.

    Raises WeightsError or OSError for another file. In another process it reads the file again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        _ = self.encoder  # what is wrong with it is said at once

    @cached_property
    def encoder(self) -> Any:
        return load_vision_encoder(self.file).eval()

    def __getstate__(self) -> dict[str, Path]:
        return {"file": self.file}

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> np.ndarray:
        pixels = torch.from_numpy(np.asarray(flattened(image), np.float32) / 255)[None]
        features = self.encoder.features(pixels)[0].float().mean((0, 1))
        return torch.nn.functional.normalize(features, dim=0).numpy()


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture. print and embedding: where copies are looked for."""

    measures: Measures
    file_bytes: int
    lines: tuple[TextLine, ...] = ()
    print: Fingerprint | None = None
    embedding: np.ndarray | None = None


@dataclass(frozen=True)
class Looking:
    """What is looked at. text: read it. copies: keep what finds them, by `embed` as well."""

    limits: Limits = LIMITS
    text: bool = True
    copies: bool = True
    embed: Embed | None = None
    at_once: ClassVar[int] = 16
    silence: ClassVar[float] = 30 * 60.0
    model: ClassVar[bool] = False

    def here(self) -> Look:
        return Look(self)

    def begin(self, device: str) -> Look:
        if isinstance(self.embed, VisionEmbedder):
            _ = self.embed.encoder
        return Look(self, torch.get_num_threads())

    def versions(self) -> dict[str, str]:
        packages = ["Pillow", "numpy"]
        packages += ["rapidocr", "onnxruntime"] if self.text else []
        packages += ["imagehash", "scipy"] if self.copies else []
        if not isinstance(self.embed, VisionEmbedder):
            return installed(*packages)
        return {**installed(*packages, "torch"), "the vision encoder": named([self.embed.file])}


class Look:
    """Raises MissingPackage where text cannot be read. threads: for that; None: all CPUs."""

    def __init__(self, what: Looking, threads: int | None = None) -> None:
        self.what, self.hashes = what, perceptual_hashes()[0]
        self.reader = TextReader(threads) if what.text else None

    def __call__(self, path: Path, known: None = None) -> Seen | Failed:
        found = read(path, self.what.limits)
        if isinstance(found, Failed):
            return found
        image, size = found
        lines = tuple(self.reader.read(image)) if self.reader else ()
        if not self.what.copies:
            return Seen(measure(image, size), size, lines)
        embedding = self.what.embed(image) if self.what.embed else None
        return Seen(measure(image, size), size, lines, fingerprint(path, image, self.hashes), embedding)
