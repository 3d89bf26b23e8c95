"""What `bench gpu` needs on a machine that has torch, no network and little else.

A wheel is taken where the interpreter has none of its packages and it was built for that interpreter. The
archive of ComfyUI is taken where no ComfyUI was named.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "bench" / "wheels"
PYTHON = "3.12"  # for which compiled wheels are packed
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17)] + ["manylinux2014_x86_64"]
ROOTS = ("accelerate", "diffusers", "transformers", "safetensors", "einops", "psutil")
LEFT_OUT = {"torch", "hf-xet"}  # hf-xet only fetches
TREE = ("dev.py", "__init__.py", "pyproject.toml", "LICENSE", "bench/", "zimage_core/", "nodes/", "tests/")
PACKAGES = ("bench", "tests", "tests/core", "tests/host")  # an installed `tests` would win over a bare folder
HOST = ("*.py", "comfy/**/*.py", "utils/**/*.py", "utils/**/*.json")
MOST_MB = 60


# ---- on the machine with a card


def unpack(folder: Path = WHEELS) -> None:
    """Put what is lacking onto sys.path, for this process and those that it starts."""
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if fits(wheel.name) and lacking(wheel)]
    hosts = [] if os.environ.get("COMFYUI_PATH") else sorted(folder.glob("ComfyUI-*.zip"))
    if not wheels and not hosts:
        return
    target = Path(tempfile.mkdtemp(prefix="zimage-bench-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    for wheel in wheels:
        extract(wheel, target / "packages")
    sys.path.append(str(target / "packages"))
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*known, str(target / "packages")])
    for host in hosts[-1:]:
        extract(host, target / host.stem)
        os.environ["COMFYUI_PATH"] = str(target / host.stem)


def extract(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder)


def fits(name: str) -> bool:
    """Whether a wheel of this name is for this interpreter and machine."""
    pythons, abi, machines = name.removesuffix(".whl").split("-")[-3:]
    ours = f"cp{sys.version_info.major}{sys.version_info.minor}"
    python = any(
        tag in ("py3", f"py{ours[2:]}", ours) or abi == "abi3" and older(tag) for tag in pythons.split(".")
    )
    machine = sys.platform == "linux" and machines.endswith(platform.machine())
    return python and (machines == "any" or machine)


def older(tag: str) -> bool:
    """cp38 and cp310 come before every later version of CPython 3."""
    return tag.startswith("cp3") and int(tag[3:]) <= sys.version_info.minor


def lacking(wheel: Path) -> bool:
    with zipfile.ZipFile(wheel) as opened:
        tops = {name.split("/")[0] for name in opened.namelist()}
    modules = {top.split(".")[0] for top in tops if not top.endswith((".dist-info", ".data", ".libs"))}
    return not all(importlib.util.find_spec(module) for module in modules)


# ---- on a developer's machine


def pack(folder: Path, host: Path) -> float:
    """Fill a new folder with the project, without nano, the wheels and the host; its size in MB.

    The wheels are of the versions that this environment has. Raises FileExistsError for a folder that is not
    empty, RuntimeError when it grew too large.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name a new folder")
    copy_tree(folder)
    wheels = folder / WHEELS.relative_to(ROOT)
    wheels.mkdir(parents=True)
    download(wheels)
    archive_host(host, wheels)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    if size > MOST_MB:
        raise RuntimeError(f"{folder} has {size:.1f} MB, more than {MOST_MB}")
    return size


def copy_tree(folder: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name.startswith(TREE) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    for package in PACKAGES:
        (folder / package / "__init__.py").touch()


def needed() -> set[str]:
    """The packages of ROOTS and what they need, what torch brings left out."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    def with_needs(names: Iterable[str]) -> set[str]:
        seen, todo = set(), list(names)
        while todo:
            name = todo.pop().lower().replace("_", "-")
            if name in seen:
                continue
            seen.add(name)
            for requirement in map(Requirement, requires(name) or []):
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    todo.append(requirement.name)
        return seen

    return with_needs(ROOTS) - with_needs(["torch"]) - LEFT_OUT


def download(folder: Path) -> None:
    from importlib.metadata import version

    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    pip += ["--implementation", "cp", "--python-version", PYTHON, "--dest", str(folder)]
    for name in PLATFORMS:
        pip += ["--platform", name]
    subprocess.run([*pip, *(f"{name}=={version(name)}" for name in sorted(needed()))], check=True)


def archive_host(host: Path, folder: Path) -> None:
    """The host's Python files of its own packages and beside main.py, as ComfyUI-VERSION.zip."""
    version = (host / "comfyui_version.py").read_text(encoding="utf-8").split('"')[1]
    with zipfile.ZipFile(folder / f"ComfyUI-{version}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for pattern in HOST for path in host.glob(pattern)):
            archive.write(path, path.relative_to(host))
