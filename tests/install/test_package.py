"""comfy-cli accepts the project, and the archive that it would publish runs in ComfyUI."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tomllib

from tests.host.server import PACK_ROOT
from tests.install.first_picture import assert_first_picture

MOST_BYTES = 42e6  # 40 MB that models/nano may take, and the rest
FOR_DEVELOPERS = ("tests/", "bench/", "zimage_core/train/", "dev.py", ".")


def comfy(*arguments: str, folder: Path) -> str:
    """Run comfy-cli without questions and tracking, with settings of its own; what it said."""
    settings = folder.parent / "settings"
    settings.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", *arguments],
        cwd=folder,
        env={**os.environ, "DO_NOT_TRACK": "1", "HOME": str(settings), "PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def clone(address, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "clone"
    subprocess.run(["git", "clone", "--quiet", address, folder], check=True)
    return folder


@pytest.fixture(scope="session")
def package(clone) -> Path:
    comfy("node", "pack", folder=clone)
    return clone / "node.zip"


def test_validation_finds_nothing(clone):
    said = comfy("node", "validate", folder=clone)
    assert "passed" in said
    assert "warning" not in said.lower(), said


def test_the_package_holds_what_users_need_and_no_more(package):
    size = package.stat().st_size
    with zipfile.ZipFile(package) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    logging.getLogger(__name__).info("%s bytes, unpacked %s, %s files", size, unpacked, len(entries))
    assert size < MOST_BYTES and unpacked < MOST_BYTES
    assert not [entry.filename for entry in entries if entry.filename.startswith(FOR_DEVELOPERS)]


def test_the_package_runs(host, package):
    """The registry's archive is unpacked into a folder that has the project's name."""
    project = tomllib.loads((PACK_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pack = host / "custom_nodes" / project["name"]
    with zipfile.ZipFile(package) as archive:
        archive.extractall(pack)
    assert_first_picture(host, pack)
