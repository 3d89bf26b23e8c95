"""Runs inside a ComfyUI's Python: what the host calls every error class of this extension.

Writes one JSON line to standard output.

python tests/host/launch.py tests/host/errors_inside.py ComfyUI_FOLDER SCRATCH_FOLDER
"""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(ROOT))
from tests.host.inside import enter, extension_module  # noqa: E402

enter(Path(sys.argv[1]).resolve())
import execution  # noqa: E402

extension_module("nodes")
names = {}
for room in ("nodes", "zimage_core"):
    for file in sorted((ROOT / room).rglob("*.py")):
        path = file.parent if file.stem == "__init__" else file.with_suffix("")
        module = extension_module(".".join(path.relative_to(ROOT).parts))
        for name, item in vars(module).items():
            error = isinstance(item, type) and issubclass(item, Exception) and not hasattr(builtins, name)
            if error and item.__module__ in ("builtins", module.__name__):
                names[name] = execution.full_type_name(item)
sys.stdout.write(json.dumps(names) + "\n")
