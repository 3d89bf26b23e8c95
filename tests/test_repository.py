"""The repository's own rules, held by a machine: style, ASCII code, no trace of one machine."""

import re
import subprocess
import sys
from pathlib import Path

from tests.host import server

ROOT = Path(__file__).resolve().parents[1]
# Folders of a machine and hosts of package registries; split so that this file does not find itself.
PARTS = (r"(?<![\w.])/" + "work/", "/" + "root/", "/home/" + r"\w+/", "pypi" + r"\.", "pythonhosted" + r"\.")
PRIVATE = re.compile("|".join(PARTS))
TEXT = {".py", ".md", ".json", ".toml", ".txt", ".js", ".yaml", ""}


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_ruff_finds_nothing():
    command = [sys.executable, "-m", "ruff", "check", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_python_files_are_ascii():
    """Tools read .py files in the machine's own encoding: other characters belong in JSON."""
    assert not [path.name for path in tracked() if path.suffix == ".py" and not path.read_bytes().isascii()]


def test_nothing_names_this_machine_or_a_registry():
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in tracked()
        if path.suffix in TEXT and (match := PRIVATE.search(path.read_text(encoding="utf-8")))
    ]
    assert not found


def test_a_base_directory_serves_the_checkout_that_starts_it(tmp_path, monkeypatch):
    """Also where it has served another, or this one in a folder that is gone."""
    base = server.make_base(tmp_path / "base")
    for name in ("first", "second", "second"):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        monkeypatch.setattr(server, "PACK_ROOT", root)
        server.link_checkout(base)
        assert (base / "custom_nodes" / server.PACK_NAME).resolve() == root.resolve()
    (tmp_path / "first").rename(tmp_path / "third")
    monkeypatch.setattr(server, "PACK_ROOT", tmp_path / "third")
    (tmp_path / "second").rmdir()
    server.link_checkout(base)
    assert (base / "custom_nodes" / server.PACK_NAME).resolve() == (tmp_path / "third").resolve()
