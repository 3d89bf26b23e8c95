"""Runs inside a ComfyUI's Python: the endpoints of a settings file in the host's user directory.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/endpoints_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST, SCRATCH = (Path(argument).resolve() for argument in sys.argv[1:3])

sys.path.insert(0, str(ROOT))
from tests.host.inside import enter, extension_module  # noqa: E402

enter(HOST)
import folder_paths  # noqa: E402

folder_paths.set_user_directory(str(SCRATCH))
endpoints = extension_module("nodes.host.writing.endpoints")
FILE = SCRATCH / "zimage_endpoints.json"
ENTRIES = {name: {"url": "http://localhost:1/v1", "model": name.upper()} for name in ("b", "a")}


def look(content: str | None) -> dict:
    """What the names are, and what each of two names gives, with that content of the file."""
    if content is not None:
        FILE.write_text(content)
    found = {"names": endpoints.endpoint_names()}
    for name in ("a", "c"):
        try:
            found[name] = endpoints.endpoint(name).model
        except RuntimeError as error:
            found[name] = str(error)
    return found


contents = {"absent": None, "good": json.dumps(ENTRIES), "broken": "{"}
sys.stdout.write(json.dumps({label: look(content) for label, content in contents.items()}) + "\n")
