"""What every test shares."""

import os
from pathlib import Path

import pytest
import torch

from tests import long
from tests.host.launch import stand_in_for_missing_ops

ROOT = Path(__file__).resolve().parents[1]
collect_ignore = ["inside"]  # unless it is named: its tests need a process of their own

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels run without a card; read when triton is imported

# transformers and diffusers import torchvision when they see it.
stand_in_for_missing_ops()


class RootIsAFolder:
    """The repository's root has an __init__.py for ComfyUI; pytest would import it as a package of tests."""

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Dir | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder)
    config.pluginmanager.register(long)


@pytest.fixture(scope="session")
def host_path() -> Path:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.fail("COMFYUI_PATH names no ComfyUI; run the tests by `python dev.py test`.")
    return Path(path)
