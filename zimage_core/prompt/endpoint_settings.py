"""Chat servers by name: a JSON file of addresses and models that lies on the server and never holds a key.

{"qwen": {"url": "https://dashscope.aliyuncs.com/compatible-mode/v1", "model": "qwen-plus",
          "key_env": "DASHSCOPE_API_KEY"},
 "local": {"url": "http://localhost:11434/v1", "model": "qwen3:8b"}}
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KINDS = {
    "url": (str,),
    "model": (str,),
    "key_env": (str,),
    "timeout": (int, float),
    "extra_body": (dict,),
    "pictures": (bool,),
}
NAMES = {str: "text", dict: "an object", list: "a list", bool: "true or false", type(None): "nothing"}
EXPECTED = (
    "expected texts as url and model, and if needed as key_env, seconds as timeout, an object as extra_body, "
    "true or false as pictures"
)
# Fields whose value would be a key, and values that are one.
KEY_FIELD = re.compile(r"^key$|(api|access)[-_ ]?key|^token$|[-_]token$|secret|password|authorization", re.I)
KEY_VALUE = re.compile(r"\s*(sk-|Bearer\s)", re.I)
LOCAL_NAME = re.compile(r"[^.]+|.+\.(localhost|local|lan|internal|home\.arpa)")


class EndpointError(RuntimeError):
    """A chat server or its settings cannot be used: the message names it, what happened and what to do."""

    answered = False  # it sent a chat completion, only none whose text can be used


@dataclass(frozen=True)
class Limits:
    """How long a server is waited for, in seconds."""

    connect: float = 10.0
    silence: float = 120.0  # a large model may have to be loaded before its first word
    total: float = 600.0  # of one attempt
    pauses: tuple[float, ...] = (1.0, 4.0)  # before the second attempt, the third ...
    retry_after: float = 30.0  # the longest pause that a server may ask for


@dataclass(frozen=True)
class Endpoint:
    """One chat server. Raises EndpointError for an address that cannot be used or would give the key away.

    The key is not part of it: `key()` reads the environment when it is needed.
    """

    name: str
    url: str  # up to /v1, or with /chat/completions
    model: str
    key_env: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # null takes a field out of the request
    limits: Limits = Limits()
    pictures: bool = False  # may be sent pictures of this machine

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = re.fullmatch(r"https?://[^\s@?#\\]+", self.url) and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:  # not shown, and key_env neither: it may be a key in the wrong place
            raise EndpointError(
                "url is no plain address (no login, no query) such as http://localhost:11434/v1"
            )
        if not self.model.strip():
            raise EndpointError("model is empty, expected the model's name at that server")
        if self.key_env is not None and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_env):
            raise EndpointError("key_env is no name of an environment variable such as DASHSCOPE_API_KEY")
        if self.key_env and self.url.startswith("http:") and not self.is_local:
            raise EndpointError(f"url is plain http to {self.host}: others could read the key. Use https")

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """This machine or its own network, judged by the address as it is written."""
        name = urlsplit(self.url).hostname
        try:
            return not ipaddress.ip_address(name).is_global
        except ValueError:
            return bool(LOCAL_NAME.fullmatch(name))

    @property
    def chat_url(self) -> str:
        return self.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    def key(self) -> str | None:
        """The key in the environment. Raises EndpointError when there should be one and is none."""
        key = os.environ.get(self.key_env or "", "").strip()
        if self.key_env and not (key and key.isascii() and key.isprintable()):
            found = "holds characters that no key has" if key else "is not set"
            raise self.error(f"the environment variable {self.key_env} {found}. Set it and restart ComfyUI")
        return key or None

    def error(self, what: str) -> EndpointError:
        return EndpointError(f"Endpoint {self.name!r} ({self.host}): {what}.")


def read_endpoints(path: str | os.PathLike) -> dict[str, Endpoint]:
    """The endpoints of a settings file. Raises EndpointError naming file, entry and what was expected."""
    place, endpoints = str(path), {}
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        if not isinstance(entries, dict):
            raise EndpointError(f"holds {_kind(entries)}, expected an object of endpoints by name")
        for name, entry in entries.items():
            place = f"{path}, endpoint {name!r}:"
            endpoints[name] = _endpoint(name, entry)
        return endpoints
    except json.JSONDecodeError as error:
        problem = f"is no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}"
    except EndpointError as error:
        problem = str(error)
    raise EndpointError(f"{place} {problem}.")  # here, where no exception with the file's text hangs on it


def _endpoint(name: str, entry: Any) -> Endpoint:
    """Values are not repeated in what this raises: one may be a key."""
    if not name.strip() or not isinstance(entry, dict):
        raise EndpointError(f"found {_kind(entry)}, expected a name and an object")
    for key, value in _all_fields(entry):
        if KEY_FIELD.search(key) or (isinstance(value, str) and KEY_VALUE.match(value)):
            raise EndpointError(
                f"{key!r} holds a key, and a key does not belong in this file. Put it into an environment "
                'variable and name that one: "key_env": "MY_API_KEY"'
            )
    for key, value in {"url": None, "model": None, **entry}.items():
        if type(value) not in KINDS.get(key, ()):
            raise EndpointError(f"found {_kind(value)} as {key}, {EXPECTED}")
    seconds = entry.get("timeout", Limits.silence)
    if not 0 < seconds < float("inf"):
        raise EndpointError(f"timeout is {seconds}, expected seconds")
    limits = Limits(silence=seconds, total=max(seconds, Limits.total))
    return Endpoint(name, limits=limits, **{key: entry[key] for key in entry if key != "timeout"})


def _all_fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Each (field, value) of a JSON object, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield str(key), inner
        yield from _all_fields(inner)


def _kind(value: Any) -> str:
    return NAMES.get(type(value), "a number")
