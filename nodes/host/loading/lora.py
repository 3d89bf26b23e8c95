"""LoRA files by the names that the host lists, each read once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ....zimage_core.weights import LoraFile, WeightsError, read_lora

FOLDER = "loras"
KEPT = 2**30  # bytes of files that are kept for the next run: a changed strength reads nothing
_kept: dict[tuple, LoraFile] = {}


def listed() -> list[str]:
    return folder_paths.get_filename_list(FOLDER)


def find(name: str) -> str:
    """The listed name that is meant: with or without its folder and extension, whichever separators it has.

    Raises WeightsError where there is none, or more than one.
    """
    wanted, names = _unix(name), listed()
    if exact := [file for file in names if _unix(file) == wanted]:
        return exact[0]
    found = [file for file in names if wanted in _short(file)]
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsError(
            f"{name!r} may be any of {len(found)} LoRAs: {'; '.join(found[:4])}. Write its "
            "folder and extension too."
        )
    short = {form: file for file in names for form in (*_short(file), _unix(file))}
    near = dict.fromkeys(short[form] for form in difflib.get_close_matches(wanted, short, 6, 0.5))
    nearest = f"The nearest are: {'; '.join(list(near)[:3])}. " if near else ""
    places = ", ".join(folder_paths.get_folder_paths(FOLDER))
    raise WeightsError(
        f"no LoRA named {name[:160]!r}: {len(names)} files were found in {places}. {nearest}Put the "
        "file there, refresh the page and choose it from the list."
    )


def _unix(name: str) -> str:
    return name.replace("\\", "/")


def _short(file: str) -> set[str]:
    """Other names of a listed file: without its extension, without its folder, without both."""
    path = _unix(file)
    bare = path.rpartition("/")[2]
    return {path.rpartition(".")[0], bare, bare.rpartition(".")[0]}


def state_of(names: Iterable[str]) -> list:
    """Differs when one of these files does; of names that are no file, what is wrong with them."""
    found = []
    for name in names:
        try:
            found.append((name, *_state(path_of(name))))
        except (WeightsError, OSError) as error:
            found.append((name, str(error)))
    return found


def read(name: str) -> LoraFile:
    """name: see `find`. Raises WeightsError for files that are none or are damaged."""
    path = path_of(name)
    key = (path, *_state(path))
    file = _kept.pop(key, None) or read_lora(path)
    _kept[key] = file  # the last one used
    while len(_kept) > 1 and sum(map(_size, _kept.values())) > KEPT:
        del _kept[next(iter(_kept))]
    return file


def path_of(name: str) -> Path:
    """name: see `find`."""
    found = find(name)
    path = folder_paths.get_full_path(FOLDER, found)
    if path is None:
        raise WeightsError(f"{found} is in the list and not on the disk any more: refresh the page.")
    return Path(path)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _size(file: LoraFile) -> int:
    return sum(value.nbytes for value in file.tensors.values())
