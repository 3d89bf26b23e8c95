"""Packages that are not needed: a part whose package is missing is left out, and the report says so."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

PACKAGES = {  # module -> package
    "imagehash": "imagehash",
    "faiss": "faiss-cpu",
    "networkx": "networkx",
    "rapidocr": "rapidocr",
    "onnxruntime": "onnxruntime",
}


class MissingPackage(RuntimeError):
    """The message names the package and the command that installs it."""


def module(name: str) -> ModuleType:
    """The optional module. Raises MissingPackage, also where it is installed but does not start."""
    logging.getLogger("faiss").setLevel(logging.WARNING)  # it tells of each build that it tries
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken build of it must not end the report
        package = PACKAGES[name]
        why = "is not installed" if isinstance(error, ImportError) else f"does not start ({error})"
        raise MissingPackage(f"{package} {why}: pip install {package}") from None
