"""A language model's answer -> the prompt in it: models wrap what was asked for in many ways."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_SPEC = json.loads(Path(__file__).with_name("answer.json").read_text(encoding="utf-8"))
_TITLE = r"[\s#*_>]*"  # Markdown around a title
_LEAD = re.compile(f"^{_TITLE}(?:{'|'.join(_SPEC['leads'])}){_TITLE}", re.IGNORECASE)
_BEGINS, _ENDS, _TURN_ENDS, _MARKS, _TAGS = (
    "|".join(_SPEC[name]) for name in ("thought_begins", "thought_ends", "turn_ends", "marks", "answer_tags")
)
_ANY_CASE = re.DOTALL | re.IGNORECASE
_THOUGHT = re.compile(rf"(?P<begins>{_BEGINS})|(?P<ends>{_ENDS})|(?P<ends_it_or_turn><\|end\|>)", _ANY_CASE)
_TURN_END = re.compile(_TURN_ENDS, _ANY_CASE)
_CHAT_MARK = re.compile(_MARKS, _ANY_CASE)
_TAGGED = re.compile(rf".*<(?:{_TAGS})>(.*?)(?:</(?:{_TAGS})>.*)?", _ANY_CASE)
_FENCE = re.compile(r"```[^\S\n]*\w*[^\S\n]*\n(.*?)\n?[^\S\n]*```", re.DOTALL)
_CUT_OFF = re.compile(r'^\{.*?"(?:' + "|".join(_SPEC["keys"]) + r')"\s*:\s*"((?:[^"\\]|\\.)*)$', re.DOTALL)


class AnswerError(ValueError):
    """There is no prompt in the answer; the message says what is there."""


def read_answer(answer: str) -> str:
    """The prompt in an answer: plain, JSON, fenced, quoted, tagged, after thinking or a lead-in.

    Raises AnswerError where there is none.
    """
    text, before = _first_turn(without_thinking(answer)), None
    while text != before:
        before = text
        for unwrap in (_without_lead, _without_fence, _without_tags, _out_of_json, _without_quotes):
            text = unwrap(text).strip()
    if not text:
        raise AnswerError("the answer is empty")
    return text


def without_thinking(answer: str) -> str:
    """The answer without what its model thought before it, in the many ways that models mark that.

    Raises AnswerError where nothing else is there.
    """
    text, place, thinking = "", 0, False
    for mark in _THOUGHT.finditer(answer):
        text += "" if thinking else answer[place : mark.start()]
        place = mark.end()
        if mark["begins"]:
            thinking = True
        elif thinking:
            thinking = False
        else:  # it began in the question: all that came was thought
            text = "" if mark["ends"] else text + mark[0]
    text += "" if thinking else answer[place:]
    if text != answer and not _first_turn(text):
        raise AnswerError("the answer is only thinking, with no prompt after it: allow more tokens")
    return text


def _first_turn(text: str) -> str:
    """The first turn that says something, without the marks of a chat template."""
    turns = (_CHAT_MARK.sub("", turn).strip() for turn in _TURN_END.split(text))
    return next(filter(None, turns), "")


def _without_tags(text: str) -> str:
    found = _TAGGED.fullmatch(text)
    return found[1] if found else text


def _without_lead(text: str) -> str:
    return _LEAD.sub("", text)


def _without_fence(text: str) -> str:
    """A fence around everything, or the first one that holds JSON."""
    for fence in _FENCE.finditer(text):
        if fence[0] == text or fence[1].lstrip().startswith("{"):
            return fence[1]
    return text


def _out_of_json(text: str) -> str:
    cut_off = _CUT_OFF.match(text)
    found = _json(text + '"}' if cut_off else text)
    if isinstance(found, str):
        return found
    if not isinstance(found, dict):
        return text
    for key in _SPEC["keys"]:
        if isinstance(found.get(key), str):
            return found[key]
    raise AnswerError(f"the answer is JSON without a text under {', '.join(_SPEC['keys'])}")


def _json(text: str) -> Any:
    """What a text of nothing but JSON says, else None; line breaks within strings are taken as they are."""
    if text[:1] not in ("{", '"'):
        return None
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return None


def _without_quotes(text: str) -> str:
    """Quotes around everything, not those of a text that begins and ends with quoted words."""
    for opened, closed in _SPEC["quotes"]:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == opened and text[-1] == closed:
            if opened not in inner and closed not in inner:
                return inner
    return text
