"""A Ray cluster of two CPUs, which ends with the tests."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.core.processes import ROOT

START = 300  # seconds, on a machine that is busy
TOGETHER = {  # and not with a token in somebody's home
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
}


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """The address of a cluster with two CPUs. What it says is in a file of the folder."""
    patch = pytest.MonkeyPatch()
    for name, value in TOGETHER.items():
        patch.setenv(name, value)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = [
        "--num-cpus=2",
        "--num-gpus=0",
        "--include-dashboard=false",
        "--disable-usage-stats",
        "--block",
    ]
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), "start", "--head", f"--port={port}", *options],
            stdout=log,
            stderr=log,
        )
        try:
            end = time.monotonic() + START
            while b"Ray runtime started" not in Path(log.name).read_bytes():
                assert head.poll() is None and time.monotonic() < end, Path(log.name).read_text()
                time.sleep(0.2)
            yield re.search(rf"--address='([^']+:{port})'", Path(log.name).read_text())[1]
        finally:
            head.terminate()
            head.wait(60)
            patch.undo()


class Driver:
    """A module's command in a process of its own. What it says is in the file `log`."""

    def __init__(self, log: Path, *command: str | Path) -> None:
        self.log = log
        with log.open("wb") as file:
            start = [sys.executable, "-m", *command]
            self.process = subprocess.Popen(start, cwd=ROOT, stdout=file, stderr=file)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + START
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.01)
