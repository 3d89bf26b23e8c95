"""The pictures in the host's input folder, and no other file."""

from __future__ import annotations

from pathlib import Path

import folder_paths


def input_pictures() -> list[str]:
    """As the host's own Load Image lists them."""
    folder = Path(folder_paths.get_input_directory())
    files = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return sorted(folder_paths.filter_files_content_types(files, ["image"]))


def input_picture(name: str) -> Path:
    """The file of that name in the input folder or in a folder there. Raises ValueError for any other."""
    folder = Path(folder_paths.get_input_directory()).resolve()
    try:
        path = (folder / name.removesuffix(" [input]")).resolve()
        if path.is_relative_to(folder) and path.is_file():
            return path
    except (OSError, ValueError):  # no file can have such a name
        pass
    raise ValueError(
        f"There is no picture {name[:200]!r} in ComfyUI's input folder: upload it, or choose one."
    )
