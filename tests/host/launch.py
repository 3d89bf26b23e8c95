"""Runs a script (a ComfyUI main.py) on CPU torch, where torchvision's compiled ops and torchaudio are absent.

    python tests/host/launch.py /path/to/ComfyUI/main.py --cpu ...

The package index has no CPU builds of torchvision and torchaudio. Importing ComfyUI needs two operator names
of the first and the bare modules of the second; neither is called for pictures.
"""

import importlib.machinery
import importlib.util
import runpy
import sys
import types
from pathlib import Path

import torch


def stand_in_for_missing_ops() -> None:
    """Declare torchvision's operators if its library does not load, an empty torchaudio if there is none."""
    vision = importlib.util.find_spec("torchvision")
    if vision is not None and not any(map(loads, Path(vision.origin).parent.glob("_C*"))):
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", schema)
    stand_in_for("torchaudio", "functional")


def stand_in_for(package: str, part: str) -> None:
    """An empty package with an empty module in it, if there is none."""
    if package in sys.modules or importlib.util.find_spec(package) is not None:
        return
    for name in (package, f"{package}.{part}"):
        module = sys.modules[name] = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    setattr(sys.modules[package], part, module)


def loads(library: Path) -> bool:
    try:
        torch.ops.load_library(str(library))
    except (ImportError, OSError, RuntimeError):
        return False
    return True


if __name__ == "__main__":
    stand_in_for_missing_ops()
    stand_in_for("torchvision", "transforms")  # elsewhere transformers would take it for real
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")
