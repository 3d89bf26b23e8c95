"""The model files that a graph names, and their hashes."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ....zimage_core.weights import WeightsError
from ..page.graph_facts import GraphFacts
from ..writing.own_files import own_folder
from .file_hashes import FileHashes
from .files import BUILT_IN, resolve

_FOLDERS = {  # of ComfyUI's loaders
    "UNETLoader": "diffusion_models",
    "CheckpointLoaderSimple": "checkpoints",
    "CheckpointLoader": "checkpoints",
}
_OURS = {"ZImageLoader", "ZImageModelLoader"}


@functools.cache
def _hashes() -> FileHashes:
    return FileHashes(own_folder() / "model_hashes.json")


def hashes_of(facts: Iterable[GraphFacts]) -> tuple[dict[str, str], list[str]]:
    """{file as the graph names it: SHA-256 in hex}, and the files whose hash is still being computed."""
    files: dict[str, Path] = {}
    for said in facts:
        files |= {lora.file: _existing("loras", lora.file) for lora in said.loras}
        if said.model is not None:
            files[said.model] = _model_file(said.loader, said.model)
    found = {name: _hashes().of(path) for name, path in files.items() if path is not None}
    return {k: v for k, v in found.items() if v}, [name for name, known in found.items() if not known]


def _model_file(loader: str, name: str) -> Path | None:
    if loader in _FOLDERS:
        return _existing(_FOLDERS[loader], name)
    if loader not in _OURS or name == BUILT_IN:
        return None
    try:
        path = resolve("transformer", name)
    except WeightsError:  # gone since it was loaded
        return None
    return path if path.is_file() else None


def _existing(folder: str, name: str) -> Path | None:
    path = folder_paths.get_full_path(folder, name)
    return Path(path) if path else None
