"""Where models that nodes save are put."""

from __future__ import annotations

from pathlib import Path

import folder_paths

FOLDER = "diffusion_models"  # in the output folder, where the host's loaders look too
NAME = "zimage"  # of files without one


def new_transformer(prefix: str, suffix: str) -> Path:
    """The next free name that begins so. Raises what the host raises for places outside that folder."""
    inside = prefix.replace("\\", "/").removeprefix(f"{FOLDER}/")
    inside = inside if inside.strip("/. ") else NAME
    root = str(Path(folder_paths.get_output_directory()).resolve() / FOLDER)
    folder, name, counter, *_ = folder_paths.get_save_image_path(inside, root)
    return Path(folder, f"{name}_{counter:05}_{suffix}")
