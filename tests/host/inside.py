"""For a process of ComfyUI's own, in which its modules and ours are imported.

The host has packages named `tests`, `nodes` and `utils` too: it comes first on the path, and `tests` is ours
only because it was imported before.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def enter(host: Path, *options: str, cpu: bool = True) -> None:
    """Make the host's modules importable and its command line that of a server with these options.

    cpu: a server that leaves a card alone.
    """
    sys.path.insert(0, str(host))
    options = (*(["--cpu"] if cpu else []), *options)
    arguments, sys.argv = sys.argv, [str(host / "main.py"), *options]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  (reads the command line now)
    import utils.extra_config  # noqa: F401  (before `nodes`, which puts comfy/ and its `utils` on the path)

    sys.argv = arguments


def extension_module(name: str) -> ModuleType:
    """A module of this extension, imported as the host does it: under the folder's path as its name."""
    package = str(ROOT).replace(".", "_x_")
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            package, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return importlib.import_module(f"{package}.{name}")


def module_without_nodes(name: str) -> ModuleType:
    """As `extension_module`, where the host lacks what its nodes and ours need: a module under them alone."""
    extension = "extension_without_nodes"
    for package, folder in ((extension, ROOT), (f"{extension}.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            sys.modules[package] = ModuleType(package)
            sys.modules[package].__path__ = [str(folder)]
    return importlib.import_module(f"{extension}.{name}")


def run(script: str, *arguments: str, timeout: float = 900) -> dict:
    """Run a script in a process of the host's own: host's folder, arguments -> its answer, a line of JSON."""
    launcher = Path(__file__).with_name("launch.py")
    command = [sys.executable, str(launcher), script, os.environ["COMFYUI_PATH"], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    if done.returncode:
        raise RuntimeError(f"{Path(script).name} failed inside the host:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
