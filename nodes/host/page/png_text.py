"""The graph in a PNG's text chunks, read without its pixels and within bounds: files come from anybody."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_TEXT = 8 << 20  # bytes, also after decompression
DEEPEST = 64  # brackets within brackets
MOST_CHUNKS = 1_000_000
LONGEST_KEYWORD = 79  # bytes, as the format has it
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")


class PngError(ValueError):
    """The file has no text of that name, or none that is read here; the message says why."""


def graph_in(path: Path, keyword: str = "prompt") -> Any:
    """What the JSON under a keyword says. Raises PngError, and OSError where the file cannot be read."""
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            raise PngError(f"{path.name} is no PNG: only PNG pictures are read for their graph.")
        data = _text(file, keyword.encode("ascii"))
    if data is None:
        raise PngError(f"{path.name} carries no graph: ComfyUI did not make it, or saved no metadata.")
    if len(data) > LARGEST_TEXT:
        raise PngError(f"The graph in {path.name} is larger than {LARGEST_TEXT >> 20} MB and is not read.")
    text = _decoded(data)
    if depth(text) > DEEPEST:
        raise PngError(f"The graph in {path.name} is nested deeper than {DEEPEST} levels and is not read.")
    try:
        return json.loads(text)
    except ValueError as error:
        raise PngError(f"The graph in {path.name} is no valid JSON: {error}.") from error


def _decoded(data: bytes) -> str:
    """UTF-8, as iTXt has it and many write it elsewhere, or Latin-1."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def depth(text: str) -> int:
    """How deep brackets lie within brackets, outside of JSON's strings."""
    deepest = level = 0
    for mark in re.findall(r"[\[\]{}]", re.sub('"[^"]*"?', "", re.sub(r"\\.", "", text))):
        level += 1 if mark in "[{" else -1
        deepest = max(deepest, level)
    return deepest


def _text(file: BinaryIO, keyword: bytes) -> bytes | None:
    """The first text under the keyword; of a larger one than LARGEST_TEXT only as much as shows that."""
    for _ in range(MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return None
        length, kind, start = int.from_bytes(head[:4], "big"), head[4:], file.tell()
        if kind in TEXT_KINDS:
            begins = file.read(min(length, LONGEST_KEYWORD + 1))
            name, null, _ = begins.partition(b"\0")
            if null and name == keyword:
                file.seek(start + len(name) + 1)
                # fields of iTXt before the text are short
                return _content(kind, file.read(min(length - len(name) - 1, LARGEST_TEXT + 1024)))
        file.seek(start + length + 4)  # the checksum is not looked at
    return None


def _content(kind: bytes, data: bytes) -> bytes:
    packed = False
    if kind == b"zTXt":  # method, text
        packed, data = True, data[1:]
    elif kind == b"iTXt":  # flag, method, language, 0, translated keyword, 0, text
        packed, data = data[:1] == b"\1", data[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not packed:
        return data
    try:
        return zlib.decompressobj().decompress(data, LARGEST_TEXT + 1)
    except zlib.error:
        return b""
