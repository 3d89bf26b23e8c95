"""The settings file of chat servers against what people write in it."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from zimage_core.prompt.endpoint_settings import Endpoint, EndpointError, Limits, read_endpoints

KEY = "sk-test-0123456789abcdef"


@pytest.mark.parametrize(
    "host", ("localhost", "127.0.0.1", "[::1]", "192.168.1.9", "10.0.0.2", "100.64.1.1", "nas", "nas.local",
             "host.docker.internal")
)  # fmt: skip
def test_plain_http_with_a_key_stays_at_home(host):
    assert Endpoint("mine", f"http://{host}:8080/v1", "m", key_env="TEST_KEY").is_local


@pytest.mark.parametrize("host", ("8.8.8.8", "chat.example.com", "local.example", "[2606:4700::1111]"))
def test_plain_http_with_a_key_does_not_leave(host):
    with pytest.raises(EndpointError, match="Use https"):
        Endpoint("mine", f"http://{host}/v1", "m", key_env="TEST_KEY")
    Endpoint("mine", f"http://{host}/v1", "m")
    Endpoint("mine", f"https://{host}/v1", "m", key_env="TEST_KEY")


def test_a_settings_file(tmp_path):
    """Also one that begins with a byte order mark, as some editors write it."""
    path = tmp_path / "endpoints.json"
    entries = {
        "cloud": {"url": "https://chat.example/v1", "model": "big", "key_env": "MY_KEY", "timeout": 30},
        "home": {
            "url": "http://localhost:1234/v1",
            "model": "small",
            "extra_body": {"enable_thinking": False},
        },
    }
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text(json.dumps(entries), encoding=encoding)
        found = read_endpoints(path)
        assert list(found) == ["cloud", "home"]
        assert (found["cloud"].key_env, found["cloud"].limits.silence) == ("MY_KEY", 30)
        assert (found["home"].key_env, found["home"].limits) == (None, Limits())
        assert found["home"].extra_body == {"enable_thinking": False}


def test_a_long_timeout_is_not_cut_off(tmp_path):
    path = tmp_path / "endpoints.json"
    for seconds, total in ((30, 600), (3600, 3600)):
        path.write_text(json.dumps({"a": URL | {"timeout": seconds}}))
        limits = read_endpoints(path)["a"].limits
        assert (limits.silence, limits.total) == (seconds, total)


@pytest.mark.parametrize("end", ("", "/", "/chat/completions", "/chat/completions/"))
def test_the_address_of_the_chat(end):
    assert Endpoint("mine", f"https://a.b/v1{end}", "m").chat_url == "https://a.b/v1/chat/completions"


URL = {"url": "https://chat.example/v1", "model": "m"}
WRONG = {
    "a list": ([], "holds a list, expected an object"),
    "an entry of text": ({"a": KEY}, "endpoint 'a': found text, expected a name and an object"),
    "no url": ({"a": {"model": "m"}}, "found nothing as url, expected texts as url and model"),
    "no model": ({"a": {"url": "http://localhost/v1"}}, "found nothing as model"),
    "empty model": ({"a": URL | {"model": " "}}, "model is empty"),
    "wrong kind": ({"a": URL | {"model": 7}}, "found a number as model, expected texts"),
    "true": ({"a": URL | {"timeout": True}}, "found true or false as timeout"),
    "no time": ({"a": URL | {"timeout": 0}}, "timeout is 0"),
    "no end": ({"a": URL | {"timeout": float("inf")}}, "timeout is inf"),
    "unknown": ({"a": URL | {"modle": "m"}}, "found text as modle, expected texts as url and model"),
    "no scheme": ({"a": URL | {"url": "localhost:11434/v1"}}, "url is no plain address"),
    "another scheme": ({"a": URL | {"url": "file:///etc/passwd"}}, "url is no plain address"),
    "no host": ({"a": URL | {"url": "http://:80/v1"}}, "url is no plain address"),
    "no port": ({"a": URL | {"url": "http://localhost:99999/v1"}}, "url is no plain address"),
    "a line break": ({"a": URL | {"url": "http://localhost/\nv1"}}, "url is no plain"),
    "a login": ({"a": URL | {"url": f"https://me:{KEY}@chat.example/v1"}}, r"plain address \(no login"),
    "a query": ({"a": URL | {"url": f"https://chat.example/v1?k={KEY}"}}, "plain address .*no query"),
    "a key": ({"a": URL | {"api_key": "0123"}}, "'api_key' holds a key.*environment variable"),
    "a key deep inside": ({"a": URL | {"extra_body": {"h": [{"Authorization": "x"}]}}}, "'Authorization'"),
    "a key by its looks": ({"a": URL | {"model": KEY}}, "'model' holds a key"),
    "a key as a variable": ({"a": URL | {"key_env": KEY}}, "'key_env' holds a key"),
    "another key as a variable": ({"a": URL | {"key_env": "ab01cd23"}}, "key_env is no name of an"),
    "no name": ({" ": URL}, "expected a name"),
}  # fmt: skip


@pytest.mark.parametrize(("entries", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_settings_file(tmp_path, entries, words):
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(EndpointError, match=words) as caught:
        read_endpoints(path)
    assert str(path) in str(caught.value) and caught.value.__context__ is None
    assert not any(secret in str(caught.value) for secret in (KEY, "0123", "ab01cd23"))


def test_an_unreadable_settings_file(tmp_path):
    path = tmp_path / "endpoints.json"
    path.write_text('{"a": {"api_key": "' + KEY + '",}')
    with pytest.raises(EndpointError, match="no JSON: .* in line 1") as caught:
        read_endpoints(path)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(EndpointError, match="no UTF-8"):
        read_endpoints(path)
    with pytest.raises(EndpointError, match="No such file"):
        read_endpoints(Path(tmp_path / "absent.json"))
