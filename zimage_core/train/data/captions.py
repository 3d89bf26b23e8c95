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
from typing import Protocol

from PIL import Image

from .optional import MissingPackage
from .picture_files import LIMITS, Limits, PictureError, open_picture
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


def caption_all(
    records: Sequence[PictureRecord],
    captioner: Captioner | None,
    languages: Sequence[str] = ("en",),
    limits: Limits = LIMITS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[PictureRecord], list[str]]:
    """(records with new captions, a line for each that has none). Dropped pictures stay as they are.

    With a captioner its captions come first and the cleaned old one last; without one there are only these.
    """
    reader, problems, out = None, [], []
    if captioner is not None:
        try:
            reader = TextReader()
        except MissingPackage as error:
            problems.append(f"text in pictures is not read before captions: {error}")
    for number, record in enumerate(records):
        progress(number, len(records))
        if record.drop:
            out.append(record)
            continue
        record = cleaned(record)
        if captioner is not None:
            try:
                record = _with_captions(record, captioner, reader, languages, limits)
            except (CaptionError, PictureError) as error:
                problems.append(f"{record.path}: {error}")
        if not record.captions:
            problems.append(f"{record.path} has no caption, and its name says nothing")
        out.append(record)
    return out, problems


def _with_captions(
    record: PictureRecord,
    captioner: Captioner,
    reader: TextReader | None,
    languages: Sequence[str],
    limits: Limits,
) -> PictureRecord:
    image = open_picture(record.path, limits)
    lines = reader.read(image) if reader else []
    captions, kinds = [], []
    for language in languages:
        asked = Asked(lines, record.captions[0] if record.captions else "", language)
        for kind, text in captions_of(captioner, image, asked).items():
            captions.append(text[: limits.characters])
            kinds.append(kind if len(languages) == 1 else f"{kind} {language}")
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
