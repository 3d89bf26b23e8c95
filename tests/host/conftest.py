"""One real ComfyUI server for the whole test session, and the graphs that run on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host import graphs, weight_files
from tests.host.server import ComfyServer


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The server's base directory; good and bad weight files lie under models/ before it starts."""
    base = tmp_path_factory.mktemp("comfyui")
    weight_files.write_all(base / "models")
    return base


@pytest.fixture(scope="session")
def server(host_path, base):
    with ComfyServer(host_path, base, "--disable-api-nodes") as server:
        yield server


@pytest.fixture
def turbo() -> dict:
    """The shipped text-to-image graph: nano, 128x128, 8 steps."""
    return graphs.api_form("01 Text to image (nano demo)")


@pytest.fixture
def host_ksampler() -> dict:
    return graphs.api_form("16 KSampler of ComfyUI (nano demo)")
