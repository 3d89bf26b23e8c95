"""Pictures as files in the host's output folder, with what they were made from written into them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy.cli_args import args
from comfy_api.latest import io, ui
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SUFFIXES = {"png": "png", "webp": "webp", "jpeg": "jpg"}
NAME = "zimage"  # of files without one
LOSSLESS = 100  # the quality at which WebP loses nothing
LONGEST = {"webp": 16383, "jpeg": 65535}  # pixels of a side that the format can hold
LARGEST_EXIF = 65533  # bytes that a JPEG can hold
_USER_COMMENT, _EXIF_PART, _MODEL, _MAKE = 0x9286, 0x8769, 0x0110, 0x010F  # EXIF tags

Graphs = list[tuple[str, Any]]  # by the names under which pictures carry them


def nothing_is_written() -> bool:
    """Whether this host was started with --disable-metadata."""
    return args.disable_metadata


def save_pictures(
    images: torch.Tensor, prefix: str, kind: str, quality: int, hidden: Any, fields: Sequence[str]
) -> tuple[list[dict], list[str]]:
    """Write each picture of [batch, height, width, 3 or 4], 0 to 1, with its fields.

    kind: a key of SUFFIXES. PNG and WebP also carry the graph, where ComfyUI's own nodes put it. Gives what
    the page shows, and what could not be written. Raises ValueError where the format cannot hold the size.
    """
    height, width = images.shape[1:3]
    if max(width, height) > LONGEST.get(kind, max(width, height)):
        raise ValueError(f"{width}x{height} pixels: {kind} takes {LONGEST[kind]} a side. Choose png.")
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        _named(prefix), folder_paths.get_output_directory(), width, height
    )
    graphs = [] if nothing_is_written() else _graphs(hidden)
    results, notes = [], {}
    for number, (image, text) in enumerate(zip(images, fields, strict=True)):
        batch_name = name.replace("%batch_num%", str(number))
        while Path(folder, file := f"{batch_name}_{counter:05}_.{SUFFIXES[kind]}").exists():
            counter += 1  # the host does not count on where the name has %batch_num%
        picture = Image.fromarray(np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8))
        note = _WRITERS[kind](Path(folder, file), picture, quality, graphs, text)
        notes |= {note: None} if note else {}
        results.append(ui.SavedResult(file, subfolder, io.FolderType.output))
        counter += 1
    return results, list(notes)


def _named(prefix: str) -> str:
    """With a name behind folders: one of dots alone is hidden, and the host does not count such files."""
    folders, separator, name = prefix.replace("\\", "/").rpartition("/")
    return prefix if name.strip(". ") else f"{folders}{separator}{NAME}"


def _write_png(path: Path, picture: Image.Image, quality: int, graphs: Graphs, text: str) -> None:
    info = None if nothing_is_written() else PngInfo()
    if info is not None:
        for name, graph in graphs:
            info.add_text(name, json.dumps(graph))
        info.add_text("parameters", text)
    picture.save(path, pnginfo=info, compress_level=4)


def _write_webp(path: Path, picture: Image.Image, quality: int, graphs: Graphs, text: str) -> None:
    exif = _exif(text)
    others = [name for name, _ in graphs if name != "prompt"]
    for name, graph in graphs:
        tag = _MODEL if name == "prompt" else _MAKE - others.index(name)
        exif[tag] = f"{name}:{json.dumps(graph)}"
    picture.save(path, exif=exif, quality=quality, lossless=quality == LOSSLESS)


def _write_jpeg(path: Path, picture: Image.Image, quality: int, graphs: Graphs, text: str) -> str | None:
    exif = _exif(text)
    fits = len(exif.tobytes()) <= LARGEST_EXIF
    picture.convert("RGB").save(path, exif=exif if fits else Image.Exif(), quality=quality)
    return (
        None if fits else "The fields are longer than a JPEG can hold and are left out: choose png or webp."
    )


_WRITERS = {"png": _write_png, "webp": _write_webp, "jpeg": _write_jpeg}


def _graphs(hidden: Any) -> Graphs:
    """The graph as it runs, and what the page gave along."""
    run = [("prompt", hidden.prompt)] if hidden.prompt is not None else []
    return run + list((hidden.extra_pnginfo or {}).items())


def _exif(text: str) -> Image.Exif:
    """With the fields as the user's comment, as web UIs write it; empty where nothing is written."""
    exif = Image.Exif()
    if not nothing_is_written():
        exif[_EXIF_PART] = {_USER_COMMENT: b"UNICODE\0" + text.encode("utf-16-be", "surrogatepass")}
    return exif
