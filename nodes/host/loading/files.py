"""Model files by the names that loaders list: files, folders with a slash behind, and the built-in model."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ....zimage_core.weights import WeightsError, parts_of
from ....zimage_core.weights.files import INDEX, PART_FOLDERS
from ..built_in import NANO
from .first_choice import first_choice

BUILT_IN = "built-in: nano"

FOLDERS = {  # the host's, in the order in which they are searched
    "transformer": ("diffusion_models",),
    "text_encoder": ("text_encoders",),
    "autoencoder": ("vae",),
    "vision": ("clip_vision",),
    "control": ("model_patches", "controlnet"),
}
CHECKPOINTS = "checkpoints"  # the host's folder of files with all parts in one
IN_CHECKPOINTS = {"transformer", "text_encoder", "autoencoder"}
HUB = "models--*--*/snapshots/*"  # as a hub's cache keeps downloads


def choices(kind: str) -> list[str]:
    """What a loader offers for one part: the built-in model, files, folders with a slash behind.

    The first is what a new node has: a full-size file where there is one.
    """
    built_in = [BUILT_IN] if _built_in(kind).is_file() else []
    listed, folders = _listed(kind), _folders(kind)

    def path_of(name: str) -> Path | None:
        if name in listed:
            path = folder_paths.get_full_path(listed[name], name)
            return Path(path) if path else None
        return folders[name[:-1]]

    names = [*listed, *(f"{name}/" for name in folders)]
    first = first_choice(kind, names, path_of)
    real = [] if first is None else [first]
    return [*real, *built_in, *(name for name in names if name != first)]


def _built_in(kind: str) -> Path:
    return NANO / f"{kind}.safetensors"


def _listed(kind: str) -> dict[str, str]:
    """{file name: the host's folder that it is in}"""
    found: dict[str, str] = {}
    for folder in FOLDERS[kind]:
        for name in (*folder_paths.get_filename_list(folder), *_ggufs(folder)):
            found.setdefault(name, folder)
    if kind in IN_CHECKPOINTS:
        for name in folder_paths.get_filename_list(CHECKPOINTS):
            path = folder_paths.get_full_path(CHECKPOINTS, name)
            if path and kind in _parts_of_checkpoint(path):
                found.setdefault(name, CHECKPOINTS)
    return found


def _ggufs(folder: str) -> Iterator[str]:
    """The host lists files of certain endings, and .gguf is none of them."""
    for root in folder_paths.get_folder_paths(folder):
        for place, _, files in os.walk(root, followlinks=True):  # as the host does
            for file in sorted(files):
                if file.lower().endswith(".gguf"):
                    yield os.path.relpath(os.path.join(place, file), root)


def _parts_of_checkpoint(path: str) -> frozenset[str]:
    """Of a Z-Image in one file; none of others, whatever they hold."""
    status = Path(path).stat()
    return _parts_of_file(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _parts_of_file(path: str, changed: int, size: int) -> frozenset[str]:
    parts = frozenset(parts_of(path))
    return parts if "transformer" in parts else frozenset()


def _searched(kind: str) -> list[Path]:
    return [Path(path) for folder in FOLDERS[kind] for path in folder_paths.get_folder_paths(folder)]


def _folders(kind: str) -> dict[str, Path]:
    """{name: folder of one part}: of diffusers models, and of shards with their index."""
    found: dict[str, Path] = {}
    for name, folder in (*_diffusers_models(kind), *_sharded(kind)):
        if folder not in found.values():
            found.setdefault(name, folder)
    return found


def _diffusers_models(kind: str) -> Iterator[tuple[str, Path]]:
    """By their own name, or by that of who published them and their own: one or two folders deep."""
    if kind not in PART_FOLDERS:
        return
    part = PART_FOLDERS[kind]
    for root in (*map(Path, folder_paths.get_folder_paths("diffusers")), *_searched(kind)):
        for pattern in ("*", "*/*"):
            for file in sorted(root.glob(f"{pattern}/{part}/*.safetensors")):
                yield file.parents[1].relative_to(root).as_posix(), file.parent
        for model in sorted(
            root.glob(f"{HUB}/{part}"), key=lambda folder: folder.stat().st_mtime, reverse=True
        ):
            if any(model.glob("*.safetensors")):
                yield model.relative_to(root).parts[0].removeprefix("models--").replace("--", "/"), model


def _sharded(kind: str) -> Iterator[tuple[str, Path]]:
    for root in _searched(kind):
        for pattern in ("*", "*/*"):
            for index in sorted(root.glob(f"{pattern}/{INDEX}")):
                yield index.parent.relative_to(root).as_posix(), index.parent


def resolve(kind: str, name: str) -> Path:
    """The file or folder behind a listed name, whichever separators the graph's system has.

    API prompts may pass anything, so only listed places are reached. Raises WeightsError naming what was
    looked for and where.
    """
    if name == BUILT_IN:
        path = _built_in(kind)
        if not path.is_file():
            raise WeightsError(
                f"the built-in model is incomplete: {path.name} is missing from models/nano. Reinstall the "
                f"extension."
            )
        return path
    wanted = name.replace("\\", "/")
    if wanted.endswith("/") and (folder := _folders(kind).get(wanted[:-1])):
        return folder
    listed = _listed(kind)
    for file, folder in listed.items():
        if file.replace("\\", "/") == wanted and (path := folder_paths.get_full_path(folder, file)):
            return Path(path)
    places = ", ".join(map(str, _searched(kind)))
    raise WeightsError(
        f"no {kind.replace('_', ' ')} named {name!r}: {len(listed)} files were found in {places}. Put the "
        "file there, refresh the page and choose it from the list."
    )
