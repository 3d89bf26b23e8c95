"""Requests of pictures, a line of JSON each, checked before anything is drawn."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import TURBO_STEPS

LINE_BYTES = 1 << 20
DEVICES = r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?$"  # names that are no files on Windows
NAME = re.compile(rf"(?!(?i:{DEVICES}))[A-Za-z0-9_-][A-Za-z0-9._-]{{0,99}}")
SIDES = range(16, 8192 + 1, 8)
STRONGEST = 100.0


class RequestError(ValueError):
    """A request that cannot be drawn; the message says what was found and what is expected."""


@dataclass(frozen=True, slots=True)
class Request:
    """One picture.

    id: name of its file without the ending. size: width and height in pixels; None: of the input picture.
    loras: names of files and their strengths. image: name of an input picture; the prompt then says what to
    do with it.
    """

    line: int
    id: str
    prompt: str
    negative: str = ""
    seed: int = 0
    size: tuple[int, int] | None = None
    steps: int = TURBO_STEPS
    guidance: float = 0.0
    loras: tuple[tuple[str, float], ...] = ()
    image: str = ""


@dataclass(frozen=True)
class Broken:
    """A line of the file that is no request."""

    line: int
    error: str


@dataclass(frozen=True)
class RequestFile:
    """All lines of a file. hash: SHA-256 of its bytes."""

    requests: tuple[Request, ...]
    broken: tuple[Broken, ...]
    hash: str


def read(path: Path) -> RequestFile:
    """Raises OSError where the file cannot be read; what is wrong with a line becomes a Broken."""
    digest, requests, broken = hashlib.sha256(), [], []
    taken: dict[str, int] = {}
    for number, line in _lines(path, digest.update):
        try:
            request = parsed(line, number)
            first = taken.setdefault(request.id.casefold(), number)  # some disks do not tell A from a
            if first != number:
                raise RequestError(f'the id "{request.id}" is that of line {first} already: take another')
            requests.append(request)
        except RequestError as error:
            broken.append(Broken(number, str(error)))
    return RequestFile(tuple(requests), tuple(broken), digest.hexdigest())


def _lines(path: Path, seen: Callable[[bytes], Any]) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each line that is not empty; of one that is too long only its beginning."""
    with open(path, "rb") as file:
        number, begun = 0, b""
        while part := file.readline(LINE_BYTES + 1):
            seen(part)
            if len(begun) <= LINE_BYTES:
                begun += part
            if part.endswith(b"\n"):
                number, line, begun = number + 1, begun, b""
                if line.strip():
                    yield number, line
        if begun.strip():
            yield number + 1, begun


def parsed(line: bytes, number: int) -> Request:
    """Raises RequestError. number: of the line, from 1; the id and the seed where it gives none."""
    line = line.rstrip(b"\r\n")  # else an error at its end is at column 1 of the next
    if len(line) > LINE_BYTES:
        raise RequestError(f"the line has more than {LINE_BYTES:,} bytes")
    try:
        found = json.loads(line.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise RequestError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"it is no JSON: {error.msg}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"it is no JSON that can be read: {error}") from None
    if not isinstance(found, dict):
        raise RequestError(f"it is {_shown(found)}: expected an object with a prompt")
    if unknown := sorted(found.keys() - FIELDS.keys()):
        raise RequestError(f"{_shown(unknown[0])} is unknown: a request has {', '.join(FIELDS)}")
    if "prompt" not in found:
        raise RequestError("it has no prompt")
    given: dict[str, Any] = {"id": f"{number:06d}", "seed": number}
    for name, value in found.items():
        check, expected = FIELDS[name]
        given[name] = check(value)
        if given[name] is None:
            raise RequestError(f'"{name}" is {_shown(value)}: expected {expected}')
    if not given.get("image"):
        given.setdefault("size", (1024, 1024))
    return Request(line=number, **given)


def inside(root: Path, name: str) -> Path:
    """The file of that name. Raises RequestError where it is none, or leads outside of the root."""
    top = os.path.realpath(root)
    real = os.path.realpath(os.path.join(top, name))
    if not real.startswith(top.rstrip(os.sep) + os.sep):
        raise RequestError(f"{name} leads outside of {top}, where nothing may be read")
    if not os.path.isfile(real):
        raise RequestError(f"{name} is no file in {top}")
    return Path(real)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# ---- what a field may hold: the value as it is kept, or None


def _text(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a pair of surrogates
        return None
    return value


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and NAME.fullmatch(value) else None


def _file(value: Any) -> str | None:
    return value if _text(value) and "\0" not in value else None


def _whole(least: int, most: int) -> Callable[[Any], int | None]:
    return lambda value: value if type(value) is int and least <= value <= most else None


def _number(value: Any, least: float, most: float) -> float | None:
    if type(value) not in (int, float) or not least <= value <= most or not math.isfinite(value):
        return None
    return float(value)


def _sides(value: Any) -> tuple[int, int] | None:
    fits = isinstance(value, list) and len(value) == 2 and all(type(v) is int and v in SIDES for v in value)
    return tuple(value) if fits else None


def _loras(value: Any) -> tuple[tuple[str, float], ...] | None:
    if not isinstance(value, dict):
        return None
    found = tuple((_file(name), _number(given, -STRONGEST, STRONGEST)) for name, given in value.items())
    return None if any(None in pair for pair in found) else found


FIELDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "prompt": (_text, "a text"),
    "id": (_name, "1 to 100 of A-Z a-z 0-9 . _ - with no dot in front, and no device's name such as con"),
    "negative": (_text, "a text"),
    "seed": (_whole(0, 2**64 - 1), "a whole number from 0 to 2^64 - 1"),
    "size": (_sides, "[width, height] in pixels, multiples of 8 from 16 to 8192"),
    "steps": (_whole(1, 1000), "a whole number from 1 to 1000"),
    "guidance": (lambda value: _number(value, 0, 100), "a number from 0 to 100"),
    "loras": (_loras, "an object of names of files and strengths from -100 to 100"),
    "image": (_file, "the name of a file"),
}
