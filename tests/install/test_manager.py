"""ComfyUI Manager installs the last commit of this checkout from a git address, and ComfyUI runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.host.server import PACK_NAME, ComfyServer
from tests.install.first_picture import assert_first_picture

# Installing by address in a running ComfyUI is refused until the person allows it.
SETTINGS = """[default]
allow_git_url_install = true
network_mode = offline
"""


@pytest.fixture
def manager_settings(host) -> None:
    folder = host / "user" / "__manager"
    folder.mkdir(parents=True)
    (folder / "config.ini").write_text(SETTINGS, encoding="utf-8")


def changed_files(clone: Path) -> str:
    command = ["git", "status", "--porcelain"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout


def test_the_command_line_installs_it(host, address, manager_settings):
    done = subprocess.run(
        [sys.executable, "-m", "cm_cli", "install", address, "--exit-on-fail"],
        cwd=host.parent,
        env={**os.environ, "COMFYUI_PATH": str(host), "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    pack = host / "custom_nodes" / PACK_NAME
    assert_first_picture(host, pack)
    assert not changed_files(pack), (
        "running it changed files, so that the Manager could not update it cleanly"
    )


def test_install_via_git_url_in_a_running_comfyui(host, address, manager_settings):
    if "--enable-manager" not in (host / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
        pytest.skip("this ComfyUI has no built-in Manager")
    pack = host / "custom_nodes" / PACK_NAME
    # The menu entry "Install via Git URL" is in the Manager's first user interface only.
    options = ("--disable-api-nodes", "--enable-manager", "--enable-manager-legacy-ui")
    with ComfyServer(host, host, *options, packs=(pack.name,), checkout=False) as server:
        body = urllib.request.Request(server.url + "/v2/customnode/install/git_url", address.encode())
        with urllib.request.urlopen(body, timeout=300) as answer:
            assert answer.status == 200, server.log_tail()
    assert_first_picture(host, pack, "--enable-manager")
    assert not changed_files(pack)
