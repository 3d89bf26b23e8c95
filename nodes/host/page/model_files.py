"""Where models that nodes save are put, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ....zimage_core.weights.convert import Converted
from ..loading.footprint import gigabytes

FOLDER = "diffusion_models"  # in the output folder, where the host's loaders look too
NAME = "zimage"  # of files without one


def new_transformer(prefix: str, suffix: str) -> Path:
    """The next free name that begins so. Raises what the host raises for places outside that folder."""
    inside = prefix.replace("\\", "/").removeprefix(f"{FOLDER}/")
    inside = inside if inside.strip("/. ") else NAME
    root = str(Path(folder_paths.get_output_directory()).resolve() / FOLDER)
    folder, name, counter, *_ = folder_paths.get_save_image_path(inside, root)
    return Path(folder, f"{name}_{counter:05}_{suffix}")


def said_of(written: Converted, is_quantised: bool) -> str:
    """Short lines for under a node, which may be narrow; the log says more. is_quantised: before, too."""
    output = Path(folder_paths.get_output_directory()).resolve()
    lines = [
        written.path.name,
        f"in output/{written.path.parent.relative_to(output).as_posix()}",
        f"{gigabytes(written.bytes)}, {written.share}",
        f"Error: {', '.join(f'{error:.2g}' for error in written.errors)}",
    ]
    if is_quantised:
        lines.append("The MODEL was quantised before: errors add up")
    return "\n".join(lines)
