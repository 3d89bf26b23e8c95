"""Prompts with choices: {a|b}, and __name__ for a line of a text file. A seed draws.

    draw("a {red|blue} __animal__", 7, Wildcards(folder))

Choices may lie in choices, and in the lines of files. A backslash keeps what follows as it is: \\{, \\|, \\},
and \\__name__. Braces without a bar are text.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NAME = "[A-Za-z0-9_/-]+"
LARGEST_FILE = 1_000_000  # bytes
DEEPEST = 8  # choices in choices
MOST = 100  # replacements in one text
LONGEST = 200  # letters of a name that an error repeats
LISTED = 20  # names that an error repeats

_TOKEN = re.compile(rf"\\(__(?:{NAME}?__)?|[{{}}|])|__({NAME}?)__|([{{}}|])")
_SUFFIX = ".txt"


class WildcardError(ValueError):
    """A name without a file, a file that cannot be read, or choices without end."""


class _Choice(NamedTuple):
    options: list[list]  # each a list of str, _Choice and _Name


class _Name(NamedTuple):
    name: str


def draw(text: str, seed: int, files: Wildcards) -> str:
    """The text with every choice made. The same seed, text and files give the same one.

    Raises WildcardError.
    """
    return _Drawing(seed, files).text_of(_parsed(text), ())


class Wildcards:
    """The text files in a folder: one choice a line; empty lines and lines that begin with # do not count."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lines(self, name: str) -> list[str]:
        """The choices of a file. Raises WildcardError naming the file, or what there is in its place."""
        path = self._path(name)
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise WildcardError(f"{path} has {size} bytes; a file of wildcards may have {LARGEST_FILE}.")
        try:
            read = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise WildcardError(f"{path} is no UTF-8 text ({error}): save it as UTF-8.") from error
        lines = [line.strip() for line in read if line.strip() and not line.lstrip().startswith("#")]
        if not lines:
            raise WildcardError(f"{path} is empty: write one choice a line.")
        return lines

    def names(self) -> list[str]:
        return [name for name, _ in self._files()]

    def state(self) -> list[list]:
        """[name, time of change, size] of each file; whatever changes a file changes this."""
        return [[name, status.st_mtime_ns, status.st_size] for name, status in self._files()]

    def _files(self) -> list[tuple[str, os.stat_result]]:
        return sorted((name, path.stat()) for name, path in self._walk())

    def _walk(self) -> Iterator[tuple[str, Path]]:
        for folder, _, files in os.walk(self.folder):
            for file in files:
                path = Path(folder, file)
                name = path.relative_to(self.folder).with_suffix("").as_posix()
                if path.suffix == _SUFFIX and re.fullmatch(NAME, name) and self._is_inside(path):
                    yield name, path

    def _is_inside(self, path: Path) -> bool:
        """A file, and not a link to one elsewhere; names that no file can have are none."""
        try:
            return path.is_file() and path.resolve().is_relative_to(self.folder.resolve())
        except OSError:
            return False

    def _path(self, name: str) -> Path:
        path = self.folder.joinpath(*name.split("/"))
        path = path.with_name(path.name + _SUFFIX)
        if all(name.split("/")) and self._is_inside(path):
            return path
        names = self.names()
        there = ", ".join(names[:LISTED]) or "nothing"
        if len(names) > LISTED:
            there += f" and {len(names) - LISTED} more"
        name = name if len(name) <= LONGEST else name[:LONGEST] + "..."
        raise WildcardError(
            f"__{name}__ is no wildcard here: {name}{_SUFFIX} is not in {self.folder}. There is: {there}. "
            f"Make that file, one choice a line, or write \\__{name}__ where the text is meant."
        )


class _Drawing:
    def __init__(self, seed: int, files: Wildcards) -> None:
        self.random = random.Random(seed)
        self.files = files
        self.replaced = 0

    def text_of(self, parts: list, way: tuple[str, ...]) -> str:
        """way: the choices that these parts lie in, from the outermost."""
        return "".join(part if isinstance(part, str) else self._drawn(part, way) for part in parts)

    def _drawn(self, part: _Choice | _Name, way: tuple[str, ...]) -> str:
        way = (*way, f"__{part.name}__" if isinstance(part, _Name) else "{|}")
        if len(way) > DEEPEST:
            raise WildcardError(
                f"choices lie more than {DEEPEST} deep: {' > '.join(way)}. Does a file name itself?"
            )
        self.replaced += 1
        if self.replaced > MOST:
            raise WildcardError(f"the text asks for more than {MOST} choices, the last in {' > '.join(way)}.")
        if isinstance(part, _Name):
            return self.text_of(_parsed(self._one_of(self.files.lines(part.name))), way)
        return self.text_of(self._one_of(part.options), way)

    def _one_of(self, options: list) -> object:
        # random() alone is the same in every Python
        return options[int(self.random.random() * len(options))]


def _parsed(text: str) -> list:
    """A text as a list of str, _Choice and _Name."""
    open_groups: list[list[list]] = [[[]]]  # the options of each brace that is open; the first is the whole

    def add(*parts: object) -> None:
        here = open_groups[-1][-1]
        for part in parts:
            if isinstance(part, str) and here and isinstance(here[-1], str):
                here[-1] += part
            else:
                here.append(part)

    end = 0
    for token in _TOKEN.finditer(text):
        add(text[end : token.start()])
        end = token.end()
        escaped, name, mark = token.groups()
        if escaped:
            add(escaped)
        elif name:
            add(_Name(name))
        elif mark == "{":
            open_groups.append([[]])
        elif len(open_groups) == 1:
            add(mark)
        elif mark == "|":
            open_groups[-1].append([])
        elif len(open_groups[-1]) == 1:
            (only,) = open_groups.pop()
            add("{", *only, "}")
        else:
            add(_Choice(open_groups.pop()))
    add(text[end:])
    while len(open_groups) > 1:  # braces that nothing closes
        first, *others = open_groups.pop()
        add("{", *first)
        for option in others:
            add("|", *option)
    return open_groups[0][0]
