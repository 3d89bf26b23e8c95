"""Model files by the names that loaders list: files, diffusers folders, and the built-in model."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ....zimage_core.weights import WeightsError
from ..built_in import NANO

BUILT_IN = "built-in: nano"

FOLDERS = {  # the host's, in the order in which they are searched
    "transformer": ("diffusion_models",),
    "text_encoder": ("text_encoders",),
    "autoencoder": ("vae",),
    "vision": ("clip_vision",),
    "control": ("model_patches", "controlnet"),
}
DIFFUSERS_PARTS = {
    "transformer": "transformer",
    "text_encoder": "text_encoder",
    "autoencoder": "vae",
    "vision": "siglip",
}


def choices(kind: str) -> list[str]:
    """What a loader offers for one part: the built-in model, files, diffusers folders with a slash behind."""
    built_in = [BUILT_IN] if _built_in(kind).is_file() else []
    return [*built_in, *_listed(kind), *(f"{name}/" for name in _diffusers_models(kind))]


def _built_in(kind: str) -> Path:
    return NANO / f"{kind}.safetensors"


def _listed(kind: str) -> dict[str, str]:
    """{file name: the host's folder that it is in}"""
    found: dict[str, str] = {}
    for folder in FOLDERS[kind]:
        for name in folder_paths.get_filename_list(folder):
            found.setdefault(name, folder)
    return found


def _searched(kind: str) -> list[str]:
    return [path for folder in FOLDERS[kind] for path in folder_paths.get_folder_paths(folder)]


def _diffusers_models(kind: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    if kind not in DIFFUSERS_PARTS:
        return found
    for folder in (*folder_paths.get_folder_paths("diffusers"), *_searched(kind)):
        for part in sorted(Path(folder).glob(f"*/{DIFFUSERS_PARTS[kind]}/*.safetensors")):
            found.setdefault(part.parents[1].name, part.parent)
    return found


def resolve(kind: str, name: str) -> Path:
    """The file or folder behind a listed name; nothing else is reached, since prompts may pass any text.

    Raises WeightsError naming what was looked for and where.
    """
    if name == BUILT_IN:
        path = _built_in(kind)
        if not path.is_file():
            raise WeightsError(
                f"the built-in model is incomplete: {path.name} is missing from models/nano. Reinstall the "
                f"extension."
            )
        return path
    if name.endswith("/") and (folder := _diffusers_models(kind).get(name[:-1])):
        return folder
    listed = _listed(kind)
    if name in listed and (path := folder_paths.get_full_path(listed[name], name)):
        return Path(path)
    raise WeightsError(
        f"no {kind.replace('_', ' ')} named {name!r}: {len(listed)} files were found in "
        f"{', '.join(_searched(kind))}. Put the file there, refresh the page and choose it from the list."
    )
