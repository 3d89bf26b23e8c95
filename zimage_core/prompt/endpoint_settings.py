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

CHAT = "/chat/completions"
FIELDS = {  # of an entry: type, needed, what is expected
    "url": (str, True, "an address such as http://localhost:11434/v1"),
    "model": (str, True, "the model's name at that server"),
    "key_env": (str, False, "the name of an environment variable, in capital letters"),
    "timeout": ((int, float), False, "how many seconds the server may stay silent"),
    "extra_body": (dict, False, 'further fields of the request, such as {"enable_thinking": false}'),
}
JSON_KINDS = {str: "text", dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
# Fields whose value would be a key, and values that are one.
KEY_FIELD = re.compile(
    r"^key$|(api|access)[-_ ]?key|^token$|[-_]token$|secret|password|authorization", re.IGNORECASE
)
KEY_VALUE = re.compile(r"\s*(sk-|Bearer\s)", re.IGNORECASE)
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
LOCAL_NAME = re.compile(r"[^.]+|.+\.(localhost|local|lan|internal|home\.arpa)")


class EndpointError(RuntimeError):
    """A chat server or its settings cannot be used: the message names it, what happened and what to do."""


@dataclass(frozen=True)
class Limits:
    """How long a server is waited for, in seconds."""

    connect: float = 10.0
    silence: float = 120.0  # a large model may have to be loaded before its first word
    total: float = 600.0
    pauses: tuple[float, ...] = (1.0, 4.0)  # before the second attempt, the third ...
    retry_after: float = 30.0  # the longest pause that a server may ask for


@dataclass(frozen=True)
class Endpoint:
    """One chat server. The key is not part of it: `key()` reads the environment when it is needed.

    Raises EndpointError for an address that cannot be used, or one that would send the key in clear text
    over the Internet.
    """

    name: str
    url: str  # up to /v1, or with /chat/completions
    model: str
    key_env: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)  # null takes a field out of the request
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        if re.search(r"[@?#]", self.url):
            raise EndpointError("url holds a name, a password or a query; expected the plain address")
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or re.search(r"[\s\\]", self.url):
            raise EndpointError(f"url is {self.url!r}, expected {FIELDS['url'][2]}")
        if not self.model.strip():
            raise EndpointError(f"model is empty, expected {FIELDS['model'][2]}")
        if self.key_env is not None and not VARIABLE.fullmatch(self.key_env):
            # Not shown: it may be a key in the wrong place.
            raise EndpointError(
                f"key_env is something else than {FIELDS['key_env'][2]}, such as DASHSCOPE_API_KEY"
            )
        if self.key_env and parts.scheme == "http" and not self.is_local:
            raise EndpointError(
                f"url is plain http to {self.host}: others could read the key. Use https, or leave "
                "out key_env if the server needs no key"
            )

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
        url = self.url.rstrip("/")
        return url if url.endswith(CHAT) else url + CHAT

    def key(self) -> str | None:
        """The key in the environment. Raises EndpointError when there should be one and is none."""
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise self.error(
                f"needs a key, and the environment variable {self.key_env} is not set. Set it and start "
                "ComfyUI again"
            )
        if not key.isascii() or not key.isprintable():
            raise self.error(f"the environment variable {self.key_env} holds characters that no key has")
        return key

    def error(self, what: str) -> EndpointError:
        return EndpointError(f"Endpoint {self.name!r} ({self.host}): {what}.")


def read_endpoints(path: str | os.PathLike) -> dict[str, Endpoint]:
    """The endpoints of a settings file. Raises EndpointError naming the file, the entry, what was found and
    what was expected. Values are not repeated: one may be a key.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        problem = f"is no JSON: {error.msg} in line {error.lineno}, column {error.colno}"
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8 text'}"
    else:
        if isinstance(entries, dict):
            return {name: _endpoint(path, name, entry) for name, entry in entries.items()}
        problem = f"holds {_kind(entries)}, expected an object of endpoints by name"
    raise EndpointError(f"{path} {problem}.")


def _endpoint(path: Path, name: str, entry: Any) -> Endpoint:
    try:
        if not name.strip():
            raise EndpointError("its name is empty")
        if not isinstance(entry, dict):
            raise EndpointError(f"found {_kind(entry)}, expected an object with {', '.join(FIELDS)}")
        for key, value in _all_fields(entry):
            if KEY_FIELD.search(key) or (isinstance(value, str) and KEY_VALUE.match(value)):
                raise EndpointError(
                    f"{key!r} holds a key, and a key does not belong in this file. Put it into an "
                    'environment variable and name that one: "key_env": "MY_API_KEY"'
                )
        if unknown := sorted(entry.keys() - FIELDS.keys()):
            raise EndpointError(f"unknown field {unknown[0]!r}, expected {', '.join(FIELDS)}")
        for key, (kind, needed, expected) in FIELDS.items():
            if key not in entry:
                if needed:
                    raise EndpointError(f"{key} is missing, expected {expected}")
            elif not isinstance(entry[key], kind) or isinstance(entry[key], bool):
                raise EndpointError(f"{key} is {_kind(entry[key])}, expected {expected}")
        settings = dict(entry)
        if (seconds := settings.pop("timeout", None)) is not None:
            if not 0 < seconds < float("inf"):
                raise EndpointError(f"timeout is {seconds}, expected {FIELDS['timeout'][2]}")
            settings["limits"] = Limits(silence=seconds, total=max(seconds, Limits.total))
        return Endpoint(name, **settings)
    except EndpointError as error:
        problem = str(error)
    raise EndpointError(f"{path}, endpoint {name!r}: {problem}.")


def _all_fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Each (field, value) of a JSON object, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield str(key), inner
        yield from _all_fields(inner)


def _kind(value: Any) -> str:
    return JSON_KINDS.get(type(value), "a number")
