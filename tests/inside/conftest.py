"""These tests run inside a ComfyUI: its modules are imported, and ours as it imports them.

It has packages with names of ours, and settings that hold for a whole process: these tests have one of their
own, which `python dev.py test` starts after the others.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.core.random_models import seeds
from tests.host.inside import enter

if "COMFYUI_PATH" not in os.environ:
    raise pytest.UsageError("COMFYUI_PATH names no ComfyUI; run the tests by `python dev.py test`.")
# The attention that cards take; the CPU's own cannot be compiled. Servers in tests/host have the CPU's.
enter(Path(os.environ["COMFYUI_PATH"]).resolve(), "--use-pytorch-cross-attention")


@pytest.fixture(autouse=True, scope="session", params=seeds(1))
def seed(request: pytest.FixtureRequest) -> int:
    """Of everything random here; it is a part of each test's name."""
    return request.param


@pytest.fixture(autouse=True, scope="module")
def as_the_host_runs_nodes() -> Iterator[None]:
    """Without gradients; models go when a file of tests is through."""
    import comfy.model_management

    with torch.no_grad():
        yield
    comfy.model_management.unload_all_models()
    gc.collect()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a file of tests."""
    return tmp_path_factory.mktemp("inside")
