"""A ComfyUI to install into, and a git address to install from."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.host.server import PACK_NAME, PACK_ROOT

# What a ComfyUI folder holds beside the program.
NOT_THE_PROGRAM = {"custom_nodes", "models", "input", "output", "temp", "user", ".git", ".venv", "venv"}


@pytest.fixture
def host(host_path, tmp_path) -> Path:
    """A ComfyUI folder of its own, without custom nodes."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        return NOT_THE_PROGRAM & set(names) if Path(folder) == host_path else set()

    copy = Path(shutil.copytree(host_path, tmp_path / "ComfyUI", ignore=left_out))
    (copy / "custom_nodes").mkdir()
    return copy


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """The last commit of this checkout behind a git address; the Manager takes no file paths."""
    folder = tmp_path_factory.mktemp("git")
    repository = folder / f"{PACK_NAME}.git"
    subprocess.run(["git", "clone", "--quiet", "--bare", PACK_ROOT, repository], check=True)
    subprocess.run(["git", "update-server-info"], cwd=repository, check=True)
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{repository.name}"
        server.shutdown()
