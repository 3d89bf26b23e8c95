"""The data sets that a graph may name: below the input and the owner's folders, and the built-in one."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folder_paths

from ....zimage_core.train.data import store
from ....zimage_core.train.data.picture_files import ENDINGS
from ..built_in import NANO
from ..writing.own_files import own_folder

SETTINGS = "training_folders.json"
EXAMPLE = NANO / "training_example"
BUILT_IN = "built-in: sloths"
LISTS = {".jsonl", ".toml"}
DEEPEST = 2  # folders below a root that are listed
MOST_LISTED = 2000


@dataclass(frozen=True)
class TrainingData:
    """What the data node hands on. name: as it is listed."""

    name: str
    data: store.DataSet


def settings_file() -> Path:
    """Pages cannot write it."""
    return own_folder() / SETTINGS


def roots() -> dict[str, Path]:
    """The folders in which data sets lie, by the names that graphs use.

    Raises DataError where the owner's settings cannot be read.
    """
    found = {"input": Path(folder_paths.get_input_directory())}
    path = settings_file()
    if not path.exists():
        return found
    try:
        named = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise store.DataError(f"{path} cannot be read as JSON: {error}.") from None
    if not isinstance(named, dict) or not all(isinstance(place, str) for place in named.values()):
        raise store.DataError(f'{path}: expected an object such as {{"photos": "D:/photos"}}.')
    for name, place in named.items():
        if not name or name in found or set(name) & set("/\\:") or not Path(place).is_dir():
            raise store.DataError(
                f"{path}: {name!r} is {place!r}: expected a name without / \\ : that is not input, and a "
                "folder that exists."
            )
        found[name] = Path(place)
    return found


def choices() -> list[str]:
    """What the data node lists: folders with pictures or folders, and lists of pictures; the built-in last.

    Where the owner's settings cannot be read, the log says why, and the input folder is left.
    """
    try:
        places = roots()
    except store.DataError as error:
        logging.error("Z-Image training: %s", error)
        places = {"input": Path(folder_paths.get_input_directory())}
    names: list[str] = []
    for name, root in places.items():
        if name != "input" and _holds_pictures(root):
            names.append(name)
        for path in _below(root, root, 1):
            names.append(f"{name}/{path.relative_to(root).as_posix()}")
            if len(names) == MOST_LISTED:
                return [*names, BUILT_IN]
    return [*names, BUILT_IN]


def _below(folder: Path, root: Path, depth: int) -> Iterator[Path]:
    for path in _entries(folder):
        if path.is_dir():
            if not _is_inside(path, root):
                continue
            if _holds_pictures(path):
                yield path
            if depth < DEEPEST:
                yield from _below(path, root, depth + 1)
        elif path.suffix.lower() in LISTS and _is_inside(path, root):
            yield path


def _holds_pictures(folder: Path) -> bool:
    """In it, or in a folder in it."""
    inner = [path for path in _entries(folder) if path.is_dir()]
    return any(
        path.suffix.lower() in ENDINGS
        for place in (folder, *inner)
        for path in (_entries(place) if place is folder or not place.is_symlink() else ())
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []


def _is_inside(path: Path, root: Path) -> bool:
    real, whole = os.path.realpath(path), os.path.realpath(root)
    return real.startswith(whole.rstrip(os.sep) + os.sep)


def place_of(name: str) -> tuple[Path, Path]:
    """(the data set, the folder outside of which nothing is read) of a listed name.

    Raises DataError: a graph may say anything.
    """
    if name == BUILT_IN:
        return EXAMPLE, EXAMPLE
    wanted = name.replace("\\", "/")
    owner, _, rest = wanted.partition("/")
    places = roots()
    if owner not in places or wanted not in choices():
        raise store.DataError(
            f"there is no training data {name[:160]!r}. Put a folder of pictures into "
            f"{folder_paths.get_input_directory()}, or name another place in {settings_file()} (see this "
            "node's help page), refresh the page and choose it from the list."
        )
    return places[owner] / rest, places[owner]


def load(name: str) -> TrainingData:
    """Raises DataError where it is not there or holds no picture."""
    path, root = place_of(name)
    return TrainingData(name, store.load(path, root))


def state_of(name: str) -> list:
    """Differs when a file of it does, in name, size or time; what is wrong where it cannot be found."""
    try:
        path, _ = place_of(name)
    except store.DataError as error:
        return [str(error)]
    folder = path if path.is_dir() else path.parent
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file.relative_to(folder).as_posix(), *_state(file)) for file in files]


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
