"""Captions of five kinds by a vision-language model, which is told first what text is in the picture.

Kinds: long, medium, short, tags, and what a user would ask for. Without a model, what is there is cleaned.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import ClassVar, Protocol

from PIL import Image

from ...cluster import installed
from .each_picture import Failed, Item, Map, one_by_one, read
from .optional import MissingPackage
from .picture_files import LIMITS, Limits
from .picture_text import TextLine, TextReader
from .records import PictureRecord

SPEC = json.loads(Path(__file__).with_name("captions.json").read_text("utf-8"))
KINDS = tuple(SPEC["kinds"])
LANGUAGES = ("en", "zh")
CAMERA = frozenset(SPEC["camera_names"])
TAGS = re.compile(r"<[^<>]{0,200}>")  # of HTML, and <lora:...>
ADDRESSES = re.compile(r"(https?://|www\.)\S+", re.I)
WEIGHED = re.compile(r"\(([^()]{1,200}?):\s*-?[\d.]+\)")
SEPARATORS = re.compile(r"[_\-+.\s()\[\]]+")
NUMBERED = re.compile(r"\d*|(?=.*\d)[0-9a-f]{4,}|[0-9a-f]{12,}|.*\d.*\d.*\d.*", re.I)  # hashes, dates


class CaptionError(RuntimeError):
    """A captioner cannot be used or did not answer; the message names it and says what to do."""


class Captioner(Protocol):
    """A vision-language model. `name` says which and where, for the report."""

    name: str

    def answer(self, images: Sequence[Image.Image], question: str, max_tokens: int) -> str:
        """Raises CaptionError."""


class Movable(Captioner, Protocol):
    """One that also answers in other processes."""

    def on(self, device: str) -> Captioner:
        """The same on a device of this process, with its model loaded. Raises CaptionError."""

    def versions(self) -> dict[str, str]:
        """What has to be the same on all machines for the same answers."""


@dataclass(frozen=True)
class Asked:
    """What is told of a picture beside the picture itself."""

    lines: Sequence[TextLine] = ()
    known: str = ""
    language: str = "en"

    def question(self, kinds: Sequence[str], one: bool = False) -> str:
        words = SPEC[self.language]
        quoted = "\n".join(json.dumps(line.text, ensure_ascii=False) for line in self.lines)
        text = words["text"].format(lines=quoted) if quoted else ""
        known = words["known"].format(known=self.known) if self.known else ""
        wanted = "\n".join(words["wanted"][kind] for kind in kinds)
        return words["one" if one else "ask"].format(text=text, known=known, kinds=wanted)


def captions_of(captioner: Captioner, image: Image.Image, asked: Asked) -> dict[str, str]:
    """A caption of each kind. All are asked for at once; those that are missing then, one by one."""
    answer = captioner.answer([image], asked.question(KINDS), SPEC["tokens"]["all"])
    found = _fields(answer)
    for kind in KINDS:
        if kind not in found:
            answer = captioner.answer([image], asked.question([kind], one=True), SPEC["tokens"]["one"])
            found[kind] = _fields(answer).get(kind) or " ".join(answer.strip().strip('"').split())
    return {kind: found[kind] for kind in KINDS if found[kind]}


def difference(captioner: Captioner, first: Image.Image, second: Image.Image, language: str = "en") -> str:
    """An instruction that makes the second picture from the first: both described, compared, then told."""
    asked, words, tokens = Asked(language=language), SPEC[language], SPEC["tokens"]["one"]
    described = [
        captioner.answer([image], asked.question(["medium"], one=True), tokens) for image in (first, second)
    ]
    compared = words["compare"].format(first=described[0], second=described[1])
    differences = captioner.answer([first, second], compared, tokens)
    return " ".join(captioner.answer([], words["instruct"].format(differences=differences), tokens).split())


@dataclass(frozen=True)
class Describing:
    """Captions of a picture of which an old caption may be known. text: it is read first."""

    captioner: Captioner
    text: bool
    languages: Sequence[str]
    limits: Limits = LIMITS
    at_once: ClassVar[int] = 1
    silence: ClassVar[float] = 60 * 60.0
    model: ClassVar[bool] = True

    def here(self) -> Describe:
        return Describe(self, self.captioner)

    def begin(self, device: str) -> Describe:
        """Of a Movable."""
        return Describe(self, self.captioner.on(device))

    def versions(self) -> dict[str, str]:
        packages = ("Pillow", *(("rapidocr", "onnxruntime") if self.text else ()))
        return {**installed(*packages), **self.captioner.versions()}


class Describe:
    """A picture -> (kind, caption) of each kind and language."""

    def __init__(self, what: Describing, captioner: Captioner) -> None:
        self.what, self.captioner = what, captioner
        self.reader = TextReader() if what.text else None

    def __call__(self, path: Path, known: str) -> list[tuple[str, str]] | Failed:
        found = read(path, self.what.limits)
        if isinstance(found, Failed):
            return found
        image, told, languages = found[0], [], self.what.languages
        lines = self.reader.read(image) if self.reader else []
        try:
            for language in languages:
                captions = captions_of(self.captioner, image, Asked(lines, known, language))
                for kind, text in captions.items():
                    kind = kind if len(languages) == 1 else f"{kind} {language}"
                    told.append((kind, text[: self.what.limits.characters]))
        except CaptionError as error:
            return Failed(str(error))
        return told


def caption_all(
    records: Sequence[PictureRecord],
    captioner: Captioner | None,
    languages: Sequence[str] = ("en",),
    limits: Limits = LIMITS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    over: Map = one_by_one,
) -> tuple[list[PictureRecord], list[str]]:
    """(records with new captions, a line for each that has none). Dropped pictures stay as they are.

    With a captioner its captions come first and the cleaned old one last; without one there are only these.
    """
    problems, failed = [], {}
    out = [record if record.drop else cleaned(record) for record in records]
    if captioner is not None:
        text = True
        try:
            TextReader()
        except MissingPackage as error:
            problems.append(f"text in pictures is not read before captions: {error}")
            text = False
        todo = [Item(i, r.path, (*r.captions, "")[0]) for i, r in enumerate(out) if not r.drop]
        describing = Describing(captioner, text, languages, limits)
        for done, (index, told) in enumerate(over(describing, todo), 1):
            progress(done, len(todo))
            if isinstance(told, Failed):
                failed[index] = told.reason
            else:
                out[index] = _with_captions(out[index], told)
    for index, record in enumerate(out):
        if index in failed:
            problems.append(f"{record.path}: {failed[index]}")
        if not record.drop and not record.captions:
            problems.append(f"{record.path} has no caption, and its name says nothing")
    return out, problems


def _with_captions(record: PictureRecord, told: Sequence[tuple[str, str]]) -> PictureRecord:
    kinds, captions = zip(*told, strict=True) if told else ((), ())
    old_kinds = record.kinds or ("original",) * len(record.captions)
    return replace(record, captions=(*captions, *record.captions), kinds=(*kinds, *old_kinds))


def cleaned(record: PictureRecord) -> PictureRecord:
    """With its captions cleaned; where it has none, with what its file's name says."""
    kinds = record.kinds or ("",) * len(record.captions)
    pairs = [(cleaned_caption(text), kind) for text, kind in zip(record.captions, kinds, strict=True)]
    pairs = [(text, kind) for text, kind in pairs if text]
    if not pairs and (name := cleaned_name(record.path.stem)):
        pairs = [(name, "")]
    kept = tuple(kind for _, kind in pairs)
    return replace(record, captions=tuple(text for text, _ in pairs), kinds=kept if any(kept) else ())


def cleaned_caption(text: str) -> str:
    """Without markup, addresses, weights such as (fox:1.2), control characters, and tags said twice."""
    text = unicodedata.normalize("NFC", unescape(text))
    text = ADDRESSES.sub(" ", TAGS.sub(" ", text))
    text = WEIGHED.sub(r"\1", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    parts = [" ".join(part.split()) for part in text.split(",")]
    if len(parts) > 2:  # tags
        parts = list(dict.fromkeys(part for part in parts if part))
    return ", ".join(part for part in parts if part).strip(" ,")


def cleaned_name(stem: str) -> str:
    """The words of a file's name; "" for names that cameras, hosts and hashes give."""
    words = [word for word in SEPARATORS.split(unicodedata.normalize("NFC", stem)) if word]
    words = [word for word in words if word.casefold() not in CAMERA and not NUMBERED.fullmatch(word)]
    text = " ".join(words)
    return text if sum(map(str.isalpha, text)) >= 2 else ""


def _fields(answer: str) -> dict[str, str]:
    """The kinds in an answer's JSON object, also where words or a fence stand around it."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        values = json.loads(answer[start : end + 1], strict=False)
    except (ValueError, RecursionError):
        return {}
    found = {}
    for kind, value in values.items() if isinstance(values, dict) else ():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = ", ".join(value)
        if kind in KINDS and isinstance(value, str) and value.strip():
            found[kind] = " ".join(value.split())
    return found
