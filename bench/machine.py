"""What a measurement was made on, and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch

from zimage_core.model.arithmetic import INSTRUCTIONS, cpu_instructions

PACKAGES = ("torch", "diffusers", "transformers")


def processor() -> str:
    """The CPU's own name, its cores, and which of the instructions that matter it has."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, "") or platform.processor() or platform.machine()
    known = cpu_instructions()
    has = [one for names in INSTRUCTIONS.values() for one in names if known.get(one)]
    words = " ".join(has) or "no bf16 arithmetic"
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {words}"


def host_version(folder: Path) -> str:
    """Of a ComfyUI, by its own file."""
    text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    return text.split('__version__ = "')[1].split('"')[0]


def about(command: str) -> dict[str, Any]:
    """What stands before the rows in a file of them."""
    device = processor()
    if torch.cuda.is_available():
        device = f"{torch.cuda.get_device_name()}; {device}"
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["ComfyUI"] = host_version(Path(os.environ["COMFYUI_PATH"]))
    return {"date": date.today().isoformat(), "command": command, "device": device, "versions": versions}
