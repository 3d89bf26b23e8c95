"""Read a data set: a folder (with kohya's `N_name` repeats), a jsonl, or musubi-tuner's TOML."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .picture_files import ENDINGS, Limits, PictureError, read_header
from .records import DataError, DataSet, PictureRecord

REPEATS = re.compile(r"(\d{1,9})_.*")  # kohya-ss/sd-scripts: how often the pictures of a folder count
STRANGE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # the last are bytes that are no UTF-8
MANY_REPEATS = 100  # from here on it may be a year or a number that was not meant so
MAX_REPEATS = 10_000
MAX_PROBLEMS = 1_000  # lines
MAX_DEPTH = 32  # folders in folders
TOML_BYTES = 1 << 20
PATH_FIELDS = ("image_path", "file_name", "image", "path")  # musubi, Hugging Face, DiffSynth, others
TEXT_FIELDS = ("caption", "text", "prompt")
GENERAL, FOLDER, JSONL = "general", "image_directory", "image_jsonl_file"
READ_FIELDS = {FOLDER, JSONL, "caption_extension", "num_repeats"}


class Problems:
    """Lines of what is wrong; beyond MAX_PROBLEMS they are only counted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.more = 0

    def add(self, line: str) -> None:
        if len(self.lines) < MAX_PROBLEMS:
            self.lines.append(STRANGE.sub(lambda found: f"\\x{ord(found[0]):02x}", line))
        else:
            self.more += 1

    def all(self) -> tuple[str, ...]:
        return (*self.lines, *([f"... and {self.more:,} more such lines"] if self.more else []))


def read(source: Path, root: Path | None, limits: Limits) -> DataSet:
    """See store.load."""
    reader = Reader(root, limits)
    reader.source(source)
    data = DataSet(tuple(reader.records), reader.problems.all())
    if not data.pictures:
        first = "".join(f"\n  {line}" for line in data.problems[:5])
        raise DataError(
            f"{source} holds no picture that can be used (expected files of the kinds "
            f"{', '.join(sorted(ENDINGS))}).{first}"
        )
    return data


class Reader:
    """Collects the records of a source."""

    def __init__(self, root: Path | None, limits: Limits) -> None:
        self.root = None if root is None else os.path.realpath(root)
        self.limits, self.problems = limits, Problems()
        self.records: list[PictureRecord] = []
        self.is_full = False
        self.real_folder = cache(os.path.realpath)
        self.header = cache(lambda path: _try_header(path, limits))

    def source(self, path: Path) -> None:
        """Raises DataError where it cannot be read at all."""
        if not path.exists():
            raise DataError(f"{path} does not exist: expected a folder, a .jsonl or a .toml.")
        if not self.is_inside(str(path)):
            raise DataError(f"{path} leads outside of {self.root}, where nothing may be read.")
        if path.is_dir():
            self.folder(path)
        elif path.suffix.lower() == ".jsonl":
            self.jsonl(path)
        elif path.suffix.lower() == ".toml":
            self.toml(path)
        else:
            raise DataError(f"{path} is no data set: expected a folder, a .jsonl or a .toml.")

    # ---- what every kind of source needs

    def is_inside(self, path: str) -> bool:
        """Whether the file or folder, with all links followed, lies in the root."""
        if self.root is None:
            return True
        folder, name = os.path.split(path)
        real = os.path.join(self.real_folder(folder), name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(path)
        return real == self.root or real.startswith(self.root.rstrip(os.sep) + os.sep)

    def refuse(self, path: str | Path, who: str = "") -> None:
        named = f"{who}: " if who else ""
        self.problems.add(f"{named}{path} leads outside of {self.root} and is not read")

    def add(self, path: Path, captions: list[str], repeats: int, **more: Any) -> None:
        """A record of a picture that lies inside. A file that is no picture becomes a dropped one."""
        if len(self.records) >= self.limits.pictures:
            if not self.is_full:
                self.problems.add(f"{path} and what follows: more than {self.limits.pictures:,} pictures")
            self.is_full = True
            return
        size, problem, note = self.header(str(path))
        if problem or note:
            self.problems.add(f"{path}: {problem or note}")
        texts = tuple(self.shortened(text, path) for text in captions)
        more["drop"] = more.get("drop") or problem
        self.records.append(PictureRecord(path, texts, repeats, size=size, **more))

    def shortened(self, text: str, path: Path) -> str:
        most = self.limits.characters
        if len(text) <= most:
            return text
        self.problems.add(f"{path}: its caption has {len(text):,} characters and is cut to {most:,}")
        return text[:most]

    def text_file(self, path: Path) -> str:
        """The caption in a file; "" and a problem where there is none."""
        most = 4 * self.limits.characters + 4
        try:
            with open(path, "rb") as file:
                data = file.read(most + 1)
        except OSError as error:
            self.problems.add(f"{path} cannot be read: {error.strerror}")
            return ""
        if len(data) > most:
            self.problems.add(f"{path} has more than {most:,} bytes: the rest is not read")
            data = data[:most].decode("utf-8", "ignore").encode()  # the cut may part a character
        try:
            text = " ".join(data.decode("utf-8-sig").split())
        except UnicodeDecodeError as error:
            self.problems.add(
                f"{path} is no UTF-8 text (byte {data[error.start]:#04x} at {error.start}): save it as UTF-8"
            )
            return ""
        if not text:
            self.problems.add(f"{path} is empty: its picture has no caption")
        return text

    # ---- a folder

    def folder(self, folder: Path, ending: str = ".txt", repeats: int = 1) -> None:
        """Every picture in it and below it."""
        for place, names in self.folders(folder):
            inner = self.repeats_of(place) if place != folder else None
            pictures = [name for name in names if os.path.splitext(name)[1].lower() in ENDINGS]
            stems = Counter(os.path.splitext(name)[0] for name in pictures)
            for name in pictures:
                stem = os.path.splitext(name)[0]
                if stems[stem] > 1:
                    self.problems.add(f"{place / name} shares the caption of {stems[stem]} pictures {stem}.*")
                if not self.is_inside(str(place / name)):
                    self.refuse(place / name)
                    continue
                text = self.beside(place / name, ending)
                self.add(place / name, [text] if text else [], repeats * (inner or 1))
            if self.is_full:
                return

    def beside(self, picture: Path, ending: str) -> str:
        file = picture.with_suffix(ending)
        if not file.is_file():
            self.problems.add(f"{picture} has no caption: {file.name} is missing")
            return ""
        if not self.is_inside(str(file)):
            self.refuse(file)
            return ""
        return self.text_file(file)

    def folders(self, folder: Path) -> Iterator[tuple[Path, list[str]]]:
        """Each folder at or below one with its files' names, sorted; each is visited once, links too."""
        seen, open_ = set(), [(folder, 0)]
        while open_:
            place, depth = open_.pop()
            if not self.is_inside(str(place)):
                self.refuse(place)
                continue
            real = os.path.realpath(place)
            if real in seen:
                continue
            seen.add(real)
            try:
                with os.scandir(place) as entries:
                    found = sorted(self.named(entries), key=lambda entry: entry.name)
                    folders = [entry.name for entry in found if entry.is_dir()]
                    files = [entry.name for entry in found if not entry.is_dir()]
            except OSError as error:
                self.problems.add(f"{place} cannot be read: {error.strerror}")
                continue
            yield place, files
            folders = [name for name in folders if not name.startswith(".")]
            if folders and depth == MAX_DEPTH:
                self.problems.add(f"{place}: folders below it are not read, it lies {MAX_DEPTH} deep")
                continue
            open_ += [(place / name, depth + 1) for name in reversed(folders)]

    def named(self, entries: Iterator[os.DirEntry]) -> Iterator[os.DirEntry]:
        for entry in entries:
            if STRANGE.search(entry.name):  # no text file could name it
                self.problems.add(f"{entry.path}: its name is no plain UTF-8 text: rename it")
            else:
                yield entry

    def repeats_of(self, folder: Path) -> int | None:
        """What kohya's form of a folder's name says."""
        if not (match := REPEATS.fullmatch(folder.name)):
            return None
        number = int(match[1])
        if not 1 <= number <= MAX_REPEATS:
            self.problems.add(f"{folder}: {number} in its name is no number of repeats, 1 is taken")
            return None
        if number >= MANY_REPEATS:
            self.problems.add(f"{folder}: each of its pictures counts {number} times, as its name says")
        return number

    # ---- a jsonl

    def jsonl(self, file: Path, repeats: int = 1) -> None:
        """One object a line; paths in it are relative to its folder."""
        for number, line in self.lines(file):
            where = f"{file} line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"), parse_constant=_no_number)
                self.row(row, file.parent, repeats, where)
            except (ValueError, RecursionError) as error:
                self.problems.add(f"{where} is left out: {_why(error)}")
            if self.is_full:
                return

    def lines(self, file: Path) -> Iterator[tuple[int, bytes]]:
        most = self.limits.line_bytes
        with open(file, "rb") as lines:
            number = 0
            while line := lines.readline(most):
                number += 1
                if len(line) == most and not line.endswith(b"\n"):
                    self.problems.add(f"{file} line {number} is left out: it is longer than {most:,} bytes")
                    while (rest := lines.readline(most)) and not rest.endswith(b"\n"):
                        pass
                elif line.strip():
                    yield number, line

    def row(self, row: Any, folder: Path, repeats: int, where: str) -> None:
        """Raises ValueError saying what is wrong with it."""
        if not isinstance(row, dict):
            raise ValueError("expected an object with image_path and caption")
        name = next((row[field] for field in PATH_FIELDS if field in row), None)
        if not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(f"expected the picture's path as one of {', '.join(PATH_FIELDS)}")
        path = folder / name
        if not self.is_inside(str(path)):
            return self.refuse(name, where)
        kinds, captions = _captions(row)
        if not captions:
            self.problems.add(f"{where}: {name} has no caption")
        more: dict[str, Any] = {"weight": _weight(row.get("weight", 1.0)), "kinds": kinds}
        if not isinstance(drop := row.get("drop", ""), str):
            raise ValueError("expected a reason as drop")
        self.add(path, captions, repeats * _repeats(row.get("repeats", 1)), drop=drop, **more)

    # ---- musubi-tuner's TOML

    def toml(self, file: Path) -> None:
        """https://github.com/kohya-ss/musubi-tuner/blob/main/docs/dataset_config.md. Raises DataError."""
        settings = _toml(file)
        general, sets = settings.get(GENERAL, {}), settings.get("datasets")
        if not isinstance(general, dict) or not isinstance(sets, list) or not sets:
            raise DataError(f"{file}: expected [[datasets]] with {FOLDER} or {JSONL}, and maybe [{GENERAL}].")
        ignored = sorted({key for part in (general, *sets) for key in part} - READ_FIELDS)
        if ignored:
            self.problems.add(f"{file}: {', '.join(ignored)} are not read here: they are the trainer's own")
        for number, part in enumerate(sets, 1):
            part = {**general, **part}
            where = f"{file}, [[datasets]] number {number}"
            try:
                repeats = _repeats(part.get("num_repeats", 1))
            except ValueError as error:
                raise DataError(f"{where}: num_repeats: {error}.") from None
            ending = part.get("caption_extension", ".txt")
            if not isinstance(ending, str) or not re.fullmatch(r"\.\w+", ending):
                raise DataError(f"{where}: expected a file ending such as .txt as caption_extension.")
            self.part(part, where, file.parent, ending, repeats)

    def part(self, part: dict, where: str, base: Path, ending: str, repeats: int) -> None:
        names = [(key, part[key]) for key in (FOLDER, JSONL) if key in part]
        if len(names) != 1 or not isinstance(names[0][1], str):
            raise DataError(f"{where}: expected the path of a folder as {FOLDER}, or of a file as {JSONL}.")
        key, name = names[0]
        path = base / name
        if not self.is_inside(str(path)):
            return self.refuse(name, where)
        if not (path.is_dir() if key == FOLDER else path.is_file()):
            raise DataError(f"{where}: {path} does not exist. Paths are relative to {base}.")
        if key == FOLDER:
            self.folder(path, ending, repeats)
        else:
            self.jsonl(path, repeats)


def _try_header(path: str, limits: Limits) -> tuple[tuple[int, int], str, str]:
    """(size, why it is no picture, what to know of it)."""
    try:
        header = read_header(path, limits)
    except PictureError as error:
        return (0, 0), str(error), ""
    return header.size, "", "it is animated: its first frame is taken" if header.is_animated else ""


def _toml(file: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        raise DataError(f"{file}: Python 3.11 or newer is needed to read TOML; or give a .jsonl.") from None
    if file.stat().st_size > TOML_BYTES:
        raise DataError(f"{file} has more than {TOML_BYTES:,} bytes: that is no list of data sets.")
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no TOML: {_why(error)}.") from None


def _captions(row: dict[str, Any]) -> tuple[tuple[str, ...], list[str]]:
    """(kinds, captions) of `captions`: texts, an object of texts by kind, or a list of both; or one text."""
    several = row.get("captions", next((row[field] for field in TEXT_FIELDS if field in row), []))
    several = [several] if isinstance(several, str) else several
    if isinstance(several, dict):
        several = [{"kind": kind, "text": text} for kind, text in several.items()]
    if not isinstance(several, list):
        raise ValueError("expected a text as caption")
    found = []
    for item in several:
        item = {"text": item, "kind": ""} if isinstance(item, str) else item
        kind, text = (item.get("kind", ""), item.get("text")) if isinstance(item, dict) else ("", None)
        if not isinstance(text, str) or not isinstance(kind, str):
            raise ValueError("expected texts as captions")
        if text := " ".join(text.split()):
            found.append((kind, text))
    kinds = tuple(kind for kind, _ in found)
    return (kinds if any(kinds) else ()), [text for _, text in found]


def _repeats(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_REPEATS:
        raise ValueError(f"expected a whole number from 1 to {MAX_REPEATS:,} as repeats, found {value!r:.40}")
    return value


def _weight(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MAX_REPEATS:  # which NaN is not
        raise ValueError(f"expected a number from 0 to {MAX_REPEATS:,} as weight, found {value!r:.40}")
    return float(value)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _why(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON ({error.msg}, column {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "no UTF-8 text"
    return "too many brackets" if isinstance(error, RecursionError) else str(error)
