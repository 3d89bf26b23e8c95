"""Files of people's own that nodes read: in `zimage`, in the host's user directory."""

from __future__ import annotations

from pathlib import Path

import folder_paths


def own_folder() -> Path:
    """Above the folders of the single users: pages cannot write it."""
    return Path(folder_paths.get_user_directory()) / "zimage"
