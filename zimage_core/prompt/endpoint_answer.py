"""What a chat server sends -> the text of its answer.

A stream of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html) whose data are
`chat.completion.chunk` objects, ended by [DONE]; or one `chat.completion` object from a server that does not
stream.
"""

from __future__ import annotations

import json
from typing import Any

MAX_BYTES = 32 * 2**20  # thinking included: about 100,000 streamed tokens
CHARACTERS_PER_TOKEN = 32  # far above what any text has
WEB_PAGE = "a web page"
QUOTED = 300  # characters of a server's own words in an error
THINKING = ("reasoning_content", "reasoning")  # DashScope, llama.cpp and vLLM; Ollama
CUT = {  # finish_reason of an answer that must not be used
    "length": "the answer is incomplete: it reached the limit of {max_tokens} tokens. Raise the limit",
    "content_filter": "the server's content filter stopped the answer. Change the prompt",
    "tool_calls": "the model asked for a tool instead of answering. Choose another model",
}


class UnusableAnswer(ValueError):
    """What the server sent is no whole answer; the message says what it is and what to do."""


class ChatAnswer:
    """An answer while it arrives: feed() chunks until `ended` or the connection ends, then result().

    `secret` is left out where an error quotes the server.
    """

    def __init__(self, max_tokens: int, secret: str | None = None):
        self.max_tokens = max_tokens
        self.secret = secret
        self.ended = False
        self._text = ""
        self._thought = False
        self._is_chat = False
        self._finish_reason: str | None = None
        self._received = 0
        self._head = b""  # what came first, for an error
        self._unread = bytearray()
        self._streams: bool | None = None  # not known before the first byte
        self._data: list[bytes] = []  # lines of the event that is being read

    @property
    def text(self) -> str:
        """The text so far. Halves of a character that came as two escapes are one again."""
        return self._text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def feed(self, chunk: bytes) -> None:
        self._received += len(chunk)
        if len(self._head) < 4 * QUOTED:
            self._head += chunk
        if self._received > MAX_BYTES:
            raise UnusableAnswer(f"the answer does not end: {MAX_BYTES >> 20} MB were received")
        self._unread += chunk
        if self._streams is None and (head := self._unread.lstrip()):
            self._streams = head[:1] not in (b"{", b"[", b"<")
        if self._streams and b"\n" in chunk:
            *lines, self._unread = self._unread.split(b"\n")
            for line in lines:
                self._line(line.rstrip(b"\r"))

    def result(self) -> str:
        """The whole answer. Raises UnusableAnswer when it is empty, incomplete or something else."""
        if self._streams:
            self._line(self._unread)
            self._line(b"")
        elif self._unread:
            self._message(self._json(self._unread))
            self.ended = True
        if not self._received:
            raise UnusableAnswer("the server sent nothing")
        if not self._is_chat:
            raise UnusableAnswer(
                f"the server sent no chat completion but {quoted(self._head, self.secret)!r}"
            )
        if self._finish_reason in CUT:
            only_thought = " or switch the model's thinking off" if self._thought and not self._text else ""
            raise UnusableAnswer(CUT[self._finish_reason].format(max_tokens=self.max_tokens) + only_thought)
        if not self.ended and self._finish_reason is None:
            raise UnusableAnswer(
                f"the answer is incomplete: it broke off after {len(self._text)} characters. Try again"
            )
        if not self._text.strip():
            what = "the model only thought and did not answer" if self._thought else "the answer is empty"
            raise UnusableAnswer(f"{what}. Try again, or choose another model")
        return self.text.strip()

    def _line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].strip())
        elif not line and self._data:
            data, self._data = b"\n".join(self._data), []
            if data == b"[DONE]":
                self.ended = True
            elif not self.ended:
                self._message(self._json(data))

    def _message(self, message: Any) -> None:
        """A `chat.completion` or a `chat.completion.chunk`; others (usage, a ping) are passed by."""
        if not isinstance(message, dict) or message.get("error"):
            raise UnusableAnswer(f"the server reports {server_words(message, self.secret)!r}")
        choices = message.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            if not self._streams:
                raise UnusableAnswer(
                    f"the server sent no chat completion but {server_words(message, self.secret)!r}"
                )
            return
        self._is_chat = True
        if reason := choices[0].get("finish_reason"):
            self._finish_reason = str(reason)
        part = choices[0].get("delta") or choices[0].get("message")
        part = part if isinstance(part, dict) else {}
        content = part.get("content")
        if content is not None and not isinstance(content, str):
            raise UnusableAnswer("the answer's content is no text. Choose a model that answers with text")
        self._thought |= any(part.get(field) for field in THINKING)
        self._text += content or ""
        if len(self._text) > self.max_tokens * CHARACTERS_PER_TOKEN:
            raise UnusableAnswer(
                f"the answer does not end: {len(self._text)} characters, more than the {self.max_tokens} "
                "tokens that were asked for can have"
            )

    def _json(self, data: bytes | bytearray) -> Any:
        try:
            return json.loads(bytes(data).decode(errors="replace"))
        except (ValueError, RecursionError):
            what = quoted(data, self.secret)
        hint = ". The address may lack /v1" if what == WEB_PAGE else ""
        raise UnusableAnswer(f"expected JSON, the server sent {what!r}{hint}")


def server_words(message: Any, secret: str | None) -> str:
    """What a server says went wrong, in any of the shapes that servers use."""
    for field in ("error", "message", "detail"):
        if isinstance(message, dict) and message.get(field):
            return server_words(message[field], secret)
    return quoted(message if isinstance(message, str) else json.dumps(message, ensure_ascii=False), secret)


def quoted(words: str | bytes | bytearray, secret: str | None) -> str:
    """The beginning of a server's words on one line, without the secret; a web page is only named."""
    text = words if isinstance(words, str) else bytes(words).decode(errors="replace")
    if text.lstrip()[:1] == "<":
        return WEB_PAGE
    if secret:
        text = text.replace(secret, "***")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * QUOTED]).split())
    return line[:QUOTED] + ("..." if len(line) > QUOTED else "")
