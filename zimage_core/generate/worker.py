"""One process with a model: requests -> PNG files in memory."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..acceleration.small_card import NoRoom
from ..cluster import named
from ..pipeline import ZImagePipeline
from ..train.data.picture_files import PictureError, flattened, open_picture
from ..train.parts import Files
from ..weights import WeightsError, fit_lora, load_vision_encoder, read_lora
from .batches import Batch
from .loras import Loras
from .requests import RequestError, inside

log = logging.getLogger("zimage_core.generate")

TEXT = "zimage_request"  # name of the request in a picture


@dataclass(frozen=True)
class Job:
    """What a worker draws with, the same for all of a run.

    root: folder of LoRAs and input pictures; vram: how much of the device it may take, None: it holds all.
    """

    files: Files
    vision: Path | None
    root: Path
    device: str
    vram: str | None = None

    @property
    def model(self) -> str:
        """A name of the weights: others differ in a file's name or size, or in bytes here and there."""
        return named((*vars(self.files).values(), self.vision))


@dataclass(frozen=True)
class Drawn:
    """Of a batch: a PNG for each id, or why there is none, or why it may be tried again another time."""

    pictures: Mapping[str, bytes] = field(default_factory=dict)
    error: str = ""
    again: str = ""


class Worker:
    """split: all processes of torch.distributed draw each picture together."""

    def __init__(self, job: Job, split: bool = False) -> None:
        """Raises WeightsError, OSError or ValueError, and torch.OutOfMemoryError for too small a device."""
        self.job, self.split = job, split
        self.pipe = ZImagePipeline.from_files(*vars(job.files).values())
        if job.vram:
            self.pipe.enable_streaming(job.vram, job.device)
        else:
            self.pipe.to(job.device)
        if split:
            self.pipe.enable_parallel()
        self.loras: tuple[tuple[str, float], ...] = ()
        self.changes = Loras(self.pipe.transformer)
        self.image: Image.Image | None = None

    def draw(self, batch: Batch) -> Drawn:
        """What is wrong with the requests, or fails with them, is in the result.

        split: raises what may fail in one process alone, as the others wait for it.
        """
        try:
            if error := self._agreed(self._prepared(batch)):
                return Drawn(error=error)
            return Drawn(self._pictures(batch))
        except (NoRoom, MemoryError, RuntimeError) as error:  # of the allocators, and of operations of torch
            if self.split and not isinstance(error, NoRoom):  # which all processes find
                raise
            again = str(error) or "there is not enough memory."
        except ValueError as error:
            return Drawn(error=str(error))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Drawn(again=again)

    def _agreed(self, error: str) -> str:
        """One process may lack a file that the others have."""
        if not self.split:
            return error
        found: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(found, error)
        return next(filter(None, found), "")

    def _prepared(self, batch: Batch) -> str:
        """Puts in the LoRAs and reads the input picture. Gives what is wrong with them."""
        try:
            self._change(batch[0].loras)
            self.image = self._image(batch[0].image) if batch[0].image else None
        except (RequestError, WeightsError, PictureError, OSError) as error:
            return str(error)
        return ""

    def _image(self, name: str) -> Image.Image:
        if self.pipe.transformer.config.siglip_feat_dim is None:
            raise RequestError(
                f"{name} is an input picture, and this model takes none: that needs omni weights (siglip_*)"
            )
        path = inside(self.job.root, name)
        if self.pipe.vision is None:
            if self.job.vision is None:
                raise RequestError(f"{name} is an input picture: give the vision encoder with --vision")
            self.pipe.vision = load_vision_encoder(self.job.vision)
            if not self.pipe.card:
                self.pipe.vision.to(self.pipe.device)
        try:
            return flattened(open_picture(path))
        except PictureError as error:
            raise RequestError(f"{name}: {error}") from None

    def _change(self, loras: tuple[tuple[str, float], ...]) -> None:
        """Takes out the LoRAs of the last batch and puts in those of this."""
        if loras == self.loras:
            return
        if self.pipe.card:
            self.pipe.card.leave(self.pipe.transformer)
        self.changes.clear()
        self.loras = ()
        try:
            for name, strength in loras:
                self._add(name, strength)
        except BaseException:
            self.changes.clear()
            raise
        self.loras = loras

    def _add(self, name: str, strength: float) -> None:
        shapes = {key: value.shape for key, value in self.changes.own().items()}
        fit = fit_lora(read_lora(inside(self.job.root, name)), shapes, has_text_encoder=True)
        key, why = next(iter(fit.unused.items()), ("", ""))
        if not fit.targets:
            raise RequestError(f"{name}: nothing of this LoRA fits the model, such as {key}: {why}")
        if key:
            log.warning("%s: %d tensors are not used, such as %s: %s", name, len(fit.unused), key, why)
        self.changes.put(fit, strength)

    def _pictures(self, batch: Batch) -> dict[str, bytes]:
        first = batch[0]
        given: dict[str, Any] = dict(zip(("width", "height"), first.size or (), strict=False))
        if first.guidance > 0:
            given["negative_prompt"] = [request.negative for request in batch]
        images = self.pipe(
            [request.prompt for request in batch],
            num_inference_steps=first.steps,
            guidance_scale=first.guidance,
            generator=[torch.Generator().manual_seed(request.seed) for request in batch],
            image=self.image,
            **given,
        ).images
        return {request.id: png(image, asdict(request)) for request, image in zip(batch, images, strict=True)}


def png(image: Image.Image, request: Mapping[str, Any]) -> bytes:
    """The file, with the request as JSON in a text of it."""
    info, out = PngInfo(), io.BytesIO()
    info.add_itxt(TEXT, json.dumps(request, ensure_ascii=False))
    image.save(out, "PNG", pnginfo=info)
    return out.getvalue()
