"""What a chat server sends -> the text of its answer.

A stream of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) whose data are
`chat.completion.chunk` objects, ended by [DONE]; or one `chat.completion` object, or both.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

SPEC = json.loads(Path(__file__).with_name("endpoint.json").read_text(encoding="utf-8"))
CUT = {reason: cut for cut in SPEC["cut"] for reason in cut["finish_reasons"]}  # others end a whole answer
MAX_BYTES = 32 * 2**20  # thinking included: about 100,000 streamed tokens
CHARACTERS_PER_TOKEN = 32  # far above what any text has
QUOTED = 300  # characters of a server's own words in an error
WEB_PAGE = "a web page"
DATA = re.compile(rb"(?:data: ?)*(?:error: ?)?")  # llama.cpp of 2025 has a field of its own for errors
NO_DATA = (b":", b"event:", b"id:", b"retry:")


class UnusableAnswer(ValueError):
    """What the server sent is no whole answer; the message says what it is and what to do."""


class ChatAnswer:
    """An answer while it arrives: add() lines until `ended` or the connection ends, then result().

    `secret` is left out where an error quotes the server.
    """

    def __init__(self, max_tokens: int, secret: str | None = None):
        self.max_tokens, self.secret = max_tokens, secret
        self.ended = False  # nothing that may come now belongs to it
        self._received = 0
        self._data: list[bytes] = []  # lines of an event
        self._other: Any = "nothing"  # what came without choices
        self._text = self._refusal = self._finish_reason = ""
        self.is_chat = self._is_whole = self._thought = False

    @property
    def text(self) -> str:
        """The text so far. Halves of a character that came as two escapes are one again."""
        return self._text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def add(self, line: bytes) -> None:
        """A line that is no field of a stream belongs to an object that came without one."""
        self._received += len(line)
        if self._received > MAX_BYTES:
            raise UnusableAnswer(f"the answer does not end: {MAX_BYTES >> 20} MB were received")
        line = line.removeprefix(b"\xef\xbb\xbf").rstrip()
        if not line:
            self._event()
        elif not line.startswith(NO_DATA):
            data = line[DATA.match(line).end() :]
            if self._data and self._data[-1].endswith(b"}") and data.startswith((b"{", b"[DONE]")):
                self._event()  # some servers leave out the empty line between two events
            self._data.append(data)

    def result(self) -> str:
        """The whole answer. Raises UnusableAnswer when it is empty, incomplete or something else."""
        self._event()
        text, cut = self.text.strip(), CUT.get(self._finish_reason)
        only_thought = self._thought and not text
        if not self.is_chat:
            problem = f"the server sent no chat completion but {server_words(self._other, self.secret)!r}"
        elif cut:
            problem = cut["words"].format(max_tokens=self.max_tokens, reason=self._finish_reason)
            problem += cut.get("only_thought", "") if only_thought else ""
        elif not (self._is_whole or self.ended):
            problem = f"the answer is incomplete: it broke off after {len(text)} characters. Try again"
        elif text:
            return text
        elif self._refusal:
            problem = f"the model refused: {quoted(self._refusal, self.secret)!r}. Change the prompt"
        else:
            what = "the model only thought and did not answer" if only_thought else "the answer is empty"
            problem = f"{what}. Try again, or choose another model"
        raise UnusableAnswer(problem)

    def _event(self) -> None:
        data, self._data = b"\n".join(self._data).strip(), []
        if data == b"[DONE]":
            self.ended = True
        elif data:
            if (found := read_json(data)) is None:
                what = quoted(data, self.secret)
                hint = ". The address may lack /v1" if what == WEB_PAGE else ""
                raise UnusableAnswer(f"expected JSON, the server sent {what!r}{hint}")
            self._object(found)

    def _object(self, found: Any) -> None:
        """A `chat.completion` or a `chat.completion.chunk`; others (usage, a ping) are passed by."""
        found = found[0] if isinstance(found, list) and found else found
        found = found if isinstance(found, dict) else {"error": found}
        choices = found.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        if (
            error := found.get("error")
            or choice.get("error")
            or (not choice and _first(found, "errors") and found)
        ):
            raise UnusableAnswer(f"the server reports {server_words(error, self.secret)!r}")
        if not choice:
            self._other = found
            return
        self.is_chat = True
        part, message = (p if isinstance(p := choice.get(key), dict) else {} for key in ("delta", "message"))
        if added := _plain(part.get("content")):
            self._text += added
        elif content := _plain(message.get("content")):
            self._text = content  # all of it: it takes the place of the parts before
        self._thought |= bool(_first(message | part, "thinking"))
        self._refusal += str((message | part).get("refusal") or "")
        reason = str(choice.get("finish_reason") or "null").lower()
        self._finish_reason = self._finish_reason if reason == "null" else reason
        if len(self._text) > self.max_tokens * CHARACTERS_PER_TOKEN:
            raise UnusableAnswer(
                f"the answer does not end: it has more than {self.max_tokens} tokens already"
            )
        self._is_whole |= reason != "null" or ("message" in choice and "delta" not in choice)


def _plain(content: Any) -> str:
    """The text of a message's content: a text, or typed parts, of which those of thinking are left out."""
    if isinstance(content, list):
        return "".join(map(_plain, content))
    if isinstance(content, dict):
        return _plain(content.get("text")) if content.get("type") in ("text", "output_text", None) else ""
    if content is None or isinstance(content, str):
        return content or ""
    raise UnusableAnswer("the answer's content is no text. Choose a model that answers with text")


def _first(found: dict, fields: str) -> Any:
    """The first of these fields that says something."""
    return next((found[field] for field in SPEC[fields] if found.get(field)), None)


def read_json(data: bytes) -> Any:
    """None where it is no JSON."""
    try:
        return json.loads(data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None


def server_words(found: Any, secret: str | None) -> str:
    """What a server says went wrong, in any of the shapes that servers use."""
    found = found[0] if isinstance(found, list) and found else found
    if isinstance(found, dict) and (inner := _first(found, "reasons")):
        return server_words(inner, secret)
    return quoted(found if isinstance(found, str | bytes) else json.dumps(found, ensure_ascii=False), secret)


def quoted(words: str | bytes, secret: str | None) -> str:
    """The beginning of a server's words on one line, without the secret; a web page is only named."""
    text = words if isinstance(words, str) else words.decode(errors="replace")
    if text.lstrip().startswith("<"):
        return WEB_PAGE
    if secret:
        in_json = json.dumps(secret)[1:-1]
        for written in (secret, in_json, in_json.replace("/", r"\/")):
            text = text.replace(written, "***")
    line = " ".join(text.split())
    line = "".join(filter(str.isprintable, line))
    return line[:QUOTED] + "..." * (len(line) > QUOTED)
