"""Files that are no safetensors: what they are instead, told by how they begin."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from .errors import WeightsError

START = 65_536  # bytes that are looked at
AGAIN = "Download it again."
BEGINNINGS = (  # lower case, after white space -> what such a file is, and what to do
    (
        (b"version https://git-lfs", b"version https://hawser"),
        "is a Git LFS pointer, a text of a few lines in place of the file. Run git lfs pull, or download the "
        "file itself.",
    ),
    (
        (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body"),
        "is a web page, not a model: the address was that of a page, or the download needed a login. "
        "Download the file itself.",
    ),
    (
        (b"pk\x03\x04", b"\x80\x02\x8a", b"\x80\x02}", b"\x80\x03}", b"\x80\x04\x95", b"\x80\x05\x95"),
        "is a torch pickle or a zip archive. Pickles (.ckpt, .pt, .bin) are never opened because they can "
        "run code: use the .safetensors file of the same model.",
    ),
)


def impostor(path: Path) -> str | None:
    """What a file is that is no safetensors, as a sentence that follows its name; None when it may be one."""
    with path.open("rb") as file:
        start = file.read(START)
    if not start:
        return f"is empty: the download failed. {AGAIN}"
    if not start.strip(b"\0"):
        return f"holds only zeros: the download broke off before any data came. {AGAIN}"
    begins = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginnings, sentence in BEGINNINGS:
        if begins.startswith(beginnings):
            return sentence
    line = start[:80].decode("ascii", "replace").split("\n")[0].strip()
    if line.isprintable() and "\ufffd" not in line:
        if line.startswith(("{", "[")):
            return "is a JSON text, such as an index or a message of the server. Download the file itself."
        return f"is a text, not a model; it begins with {line[:60]!r}. Download the file itself."
    return None


def refuse(path: Path, name: str, otherwise: str) -> NoReturn:
    """Raises WeightsError: what the file is, or `otherwise` where it begins like a safetensors file."""
    raise WeightsError(f"{name} {impostor(path) or otherwise}")
