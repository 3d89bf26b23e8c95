"""What the long command runs, remembers and records, in a small repository of the test's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pathlib, pytest
from tests.long import size

def test_plain(): note("plain")

@pytest.mark.sampled
def test_sampled(record_property):
    note(f"sampled {size(2, 9)}")
    record_property("cases", size(2, 9))

@pytest.mark.long
def test_long():
    note("long")
    assert not pathlib.Path("fails").exists()

def note(text):
    with open("ran", "a") as file: file.write(text + ",")
"""


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(TESTS)
    options = "addopts = -p tests.long --import-mode=importlib\ntestpaths = tests"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{options}\n")
    (tmp_path / ".gitignore").write_text(".cache\n.pytest_cache\n__pycache__\nran\nfails\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "tests")
    return tmp_path


def run(folder: Path, *arguments: str, long: bool) -> tuple[int, str]:
    """The exit code, and what ran."""
    environment = {k: v for k, v in os.environ.items() if k != "ZIMAGE_LONG"} | {"PYTHONPATH": str(ROOT)}
    if long:
        environment["ZIMAGE_LONG"] = "1"
    (folder / "ran").write_text("")
    command = [sys.executable, "-m", "pytest", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1, 5), done.stdout + done.stderr
    return done.returncode, (folder / "ran").read_text()


def result(folder: Path) -> dict:
    return json.loads((folder / "tests/results/long.json").read_text())["tests"]


def test_the_short_command_samples_and_leaves_out_what_is_long(repository: Path) -> None:
    assert run(repository, long=False) == (0, "plain,sampled 2,")
    assert not (repository / "tests/results").exists()


def test_what_passed_is_not_run_again_until_a_file_changes(repository: Path) -> None:
    (repository / "fails").touch()
    assert run(repository, long=True) == (1, "sampled 9,long,")
    assert result(repository)["failed"] == ["tests/test_it.py::test_long"]
    (repository / "fails").unlink()
    assert run(repository, long=True) == (0, "long,")
    found = result(repository)
    assert found["failed"] == [] and found["passed"] == 2
    assert found["facts"] == {"tests/test_it.py::test_sampled": {"cases": 9}}
    assert re.fullmatch(r"[0-9a-f]{12}", found["commit"]) and re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    (repository / "more.py").touch()
    assert run(repository, long=True) == (0, "sampled 9,long,")
    assert result(repository)["commit"].endswith("+")


def test_a_part_of_it_is_remembered_but_no_result(repository: Path) -> None:
    assert run(repository, "-k", "sampled", long=True) == (0, "sampled 9,")
    assert not (repository / "tests/results").exists()
    assert run(repository, long=True) == (0, "long,")
    assert result(repository)["passed"] == 2
    assert run(repository, long=True) == (0, "")
