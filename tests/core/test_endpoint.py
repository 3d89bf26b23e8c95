"""The chat client against a server that misbehaves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from zimage_core.prompt import endpoint as endpoint_client
from zimage_core.prompt.endpoint import Endpoint, EndpointError, Limits, complete

KEY = "sk-test-0123456789abcdef"
QUICK = Limits(connect=5.0, silence=5.0, total=20.0, pauses=(0.02, 0.02), retry_after=0.5)
SSE = {"Content-Type": "text/event-stream"}


class Request(BaseHTTPRequestHandler):
    """One request: kept by the server, then given to what the test wants done with it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(self)
        self.close_connection = True
        try:
            self.server.behave(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up.set()

    do_GET = do_POST

    def answer(self, status: int, body: bytes, headers: dict[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        """Begin a stream that ends with the connection."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behave: Callable[[Request], None]):
        super().__init__(("127.0.0.1", 0), Request)
        self.behave, self.requests, self.hung_up = behave, [], threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def endpoint(self, **fields: object) -> Endpoint:
        url = f"http://127.0.0.1:{self.server_port}/v1"
        return Endpoint(**{"name": "mine", "url": url, "model": "m", "limits": QUICK} | fields)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Request], None]], Server]]:
    monkeypatch.setenv("TEST_KEY", KEY)
    running = []

    def start(behave: Callable[[Request], None]) -> Server:
        running.append(Server(behave))
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def chunk(text: str | None = None, finish: str | None = None, **delta: str) -> bytes:
    choice = {
        "index": 0,
        "delta": delta | ({} if text is None else {"content": text}),
        "finish_reason": finish,
    }
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


def whole(text: str | None, finish: str = "stop", **message: str) -> bytes:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


DONE = b"data: [DONE]\n\n"
FINE = chunk("A fox ") + chunk("in the snow.") + chunk(finish="stop") + DONE


def says(status: int, body: bytes, headers: dict[str, str] = {}) -> Callable[[Request], None]:
    return lambda request: request.answer(status, body, headers)


def ask(endpoint: Endpoint, **settings: object) -> str:
    return complete(endpoint, [{"role": "user", "content": "a fox"}], **{"max_tokens": 100} | settings)


def failure(endpoint: Endpoint, **settings: object) -> str:
    """The words of the error, with everything that a log could show of it: the key must be in none."""
    with pytest.raises(EndpointError) as caught:
        ask(endpoint, **settings)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(endpoint)
    assert KEY not in shown and KEY[:12] not in shown
    assert caught.value.__context__ is caught.value.__cause__ is None, "they may hold the request"
    assert repr(endpoint.name) in str(caught.value) and endpoint.host in str(caught.value)
    return str(caught.value)


def test_a_streamed_answer(serve):
    seen = []

    def slowly(request: Request) -> None:
        request.stream()
        for part in (b": a comment\n\n", chunk(role="assistant"), chunk("A fox "), chunk("in the snow.\n")):
            request.wfile.write(part)
            time.sleep(0.15)
        request.wfile.write(chunk(finish="stop") + b'data: {"choices": [], "usage": {}}\n\n' + DONE)

    server = serve(slowly)
    assert ask(server.endpoint(key_env="TEST_KEY"), on_text=seen.append, seed=3) == "A fox in the snow."
    assert seen[0] == "A fox " and seen[-1].strip() == "A fox in the snow."
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers.get_all("Authorization") == [f"Bearer {KEY}"]
    user = {"role": "user", "content": "a fox"}
    assert request.body == {"model": "m", "messages": [user], "stream": True, "max_tokens": 100, "seed": 3}


def test_a_whole_address_and_further_fields(serve):
    """A null takes a field out: some models want another name for max_tokens."""
    server = serve(says(200, FINE, SSE))
    url = f"http://localhost:{server.server_port}/v1/chat/completions"
    seed = 2**64 - 1  # the host's largest; servers take less
    extra = {"enable_thinking": False, "max_tokens": None, "max_completion_tokens": 9, "stream": False}
    assert ask(server.endpoint(url=url, extra_body=extra), temperature=0.5, seed=seed) == "A fox in the snow."
    (request,) = server.requests
    assert request.path == "/v1/chat/completions" and "Authorization" not in request.headers
    del request.body["messages"]
    assert 0 <= request.body.pop("seed") < 2**31
    assert request.body == {
        "model": "m", "stream": True, "temperature": 0.5, "enable_thinking": False, "max_completion_tokens": 9
    }  # fmt: skip


def test_an_answer_is_not_asked_for_again(serve):
    """A second attempt may cost money: also where what came cannot be used."""
    for body in (
        b"rubbish",
        whole("A fox", "length"),
        chunk("A f") + b'data: {"error": "out of memory"}\n\n',
    ):
        server = serve(says(200, body))
        failure(server.endpoint())
        assert len(server.requests) == 1


def test_an_unusable_answer_is_told_from_none(serve):
    for status, body, answered in (
        (200, whole(""), True),
        (200, whole("A fox", "length"), True),
        (200, b"<html>", False),
        (400, whole("A fox"), False),
    ):
        with pytest.raises(EndpointError) as caught:
            ask(serve(says(status, body)).endpoint())
        assert caught.value.answered == answered, body


def test_the_end_is_not_waited_for(serve):
    """A server may leave the connection open after its last word."""

    def stay(request: Request) -> None:
        request.stream()
        request.wfile.write(FINE)
        wait(request)

    server = serve(stay)
    assert ask(server.endpoint()) == "A fox in the snow."
    assert server.hung_up.wait(2)


def test_a_connection_that_breaks(serve):
    """Fewer bytes than announced, before and after the first word: never asked a second time."""
    long = {**SSE, "Content-Length": "9999"}
    server = serve(says(200, chunk("A fox"), long))
    assert "broke off after 5 characters" in failure(server.endpoint())
    silent = serve(lambda request: None)
    assert "broke off" in failure(silent.endpoint())
    assert len(server.requests) == len(silent.requests) == 1
    whole = serve(says(200, b'{"choices": [', {"Content-Length": "9999"}))
    assert "broke off (ClientPayloadError). Try again" in failure(whole.endpoint())
    complete_all_the_same = serve(says(200, chunk("A fox", "stop"), long))
    assert ask(complete_all_the_same.endpoint()) == "A fox"


REFUSED = {
    401: "refused the key. Check the key in TEST_KEY",
    403: "the key in TEST_KEY, and that it may use 'm'",
    404: "/v1, and 'm'",
    400: "refused the request",
}


@pytest.mark.parametrize(("status", "words"), REFUSED.items())
def test_refusals(serve, caplog, status, words):
    """Asked once, with the server's own reason, in which a server may repeat the key."""
    caplog.set_level(logging.DEBUG)
    reason = "x" * 270 + f" bad key {KEY}: " + "y" * 99
    for body in (json.dumps({"error": {"message": reason}}).encode(), reason.encode()):
        server = serve(says(status, body))
        message = failure(server.endpoint(key_env="TEST_KEY"))
        assert words in message and f"HTTP {status}: xxx" in message and "bad key ***" in message
        assert len(server.requests) == 1 and len(message) < 600
    assert KEY not in caplog.text
    assert "HTTP 204: no reason given" in failure(serve(says(204, b"")).endpoint())
    assert "set key_env" in failure(serve(says(401, b"")).endpoint())


def test_a_reason_in_two_pieces(serve):
    """It is shown as plain text on one line."""

    def slowly(request: Request) -> None:
        body = json.dumps({"error": {"message": "\x1b[31mno\nsuch model"}}).encode()
        request.answer(400, body[:20], {"Content-Length": str(len(body))})
        time.sleep(0.2)
        request.wfile.write(body[20:])

    assert "(HTTP 400: [31mno such model)" in failure(serve(slowly).endpoint())


def test_a_key_is_not_repeated_from_an_answer(serve):
    for body in (b"{" + KEY.encode(), b'{"error": "%s"}' % KEY.encode(), KEY.encode()):
        assert "***" in failure(serve(says(200, body)).endpoint(key_env="TEST_KEY"))


def test_what_cannot_be_read(serve, monkeypatch):
    """A line without an end, texts in texts without an end, and a redirect to no address."""
    monkeypatch.setattr("zimage_core.prompt.endpoint.MAX_BYTES", 2**16)
    nested = b'{"choices": [{"message": {"content": %s}}]}' % (b"[" * 900 + b"]" * 900)
    for status, body, more in (
        (200, b"x" * 2**18, {}),
        (200, nested, {}),
        (302, b"", {"Location": "http://[::1/v1"}),
    ):
        assert "cannot be read" in failure(serve(says(status, body, more)).endpoint())


@pytest.mark.parametrize("headers", ({}, {"Retry-After": "0.2"}))
def test_busy_then_fine(serve, headers):
    """A later attempt succeeds; the pause is what the server asks for."""
    first = [says(429, b"slow down", headers), says(503, b"")]
    server = serve(lambda request: (first.pop(0) if first else says(200, FINE, SSE))(request))
    begin = time.monotonic()
    assert ask(server.endpoint()) == "A fox in the snow."
    assert len(server.requests) == 3
    if headers:
        assert time.monotonic() - begin >= 0.2


def test_busy_for_long(serve):
    """A server that asks for more patience than we have is not asked again."""
    server = serve(says(429, b"quota", {"Retry-After": "3600"}))
    assert "asks to wait 3600 s" in failure(server.endpoint())
    assert len(server.requests) == 1
    server = serve(says(429, b"quota", {"Retry-After": "Wed, 01 Jan 2020 00:00:00 GMT"}))
    assert "quota" in failure(server.endpoint()) and len(server.requests) == 3


def test_broken_for_ever(serve):
    server = serve(says(500, b'{"detail": "out of memory"}'))
    assert "HTTP 500: out of memory)" in failure(server.endpoint())
    assert len(server.requests) == 3
    page = serve(says(502, b"<html>nginx</html>"))
    assert "HTTP 502: a web page" in failure(page.endpoint())


def test_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    message = failure(Endpoint("mine", f"http://127.0.0.1:{port}/v1", "m", limits=QUICK))
    assert "Check that the server runs" in message


def test_unknown_name_and_no_tls(serve, monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    plain = serve(says(200, FINE))
    url = f"https://127.0.0.1:{plain.server_port}/v1"
    assert "http or https" in failure(plain.endpoint(url=url))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "no address is known" in failure(Endpoint("mine", "http://nobody.internal/v1", "m", limits=QUICK))


@pytest.mark.parametrize("status", (301, 302, 303, 307, 308))
def test_a_redirect_is_not_followed(serve, status):
    other = serve(says(200, FINE))
    target = f"http://127.0.0.1:{other.server_port}/v1/chat/completions"
    server = serve(says(status, b"", {"Location": target.replace("//", "//user:secret@")}))
    message = failure(server.endpoint(key_env="TEST_KEY"))
    assert f"127.0.0.1:{other.server_port}" in message and "secret" not in message
    assert len(server.requests) == 1 and not other.requests


def test_an_endless_answer(serve):
    def endless(request: Request) -> None:
        request.stream()
        while True:
            request.wfile.write(chunk("more and "))

    server = serve(endless)
    assert "does not end" in failure(server.endpoint(), max_tokens=8)
    assert server.hung_up.wait(2)


def test_a_silent_and_a_slow_server(serve):
    def silent(request: Request) -> None:
        request.stream()
        request.wfile.write(chunk("A fox"))
        time.sleep(1.5)

    def slow(request: Request) -> None:
        request.stream()
        while True:
            request.wfile.write(chunk("a"))
            time.sleep(0.05)

    impatient = dataclasses.replace(QUICK, silence=0.6)
    assert "silent for 0.6 s" in failure(serve(silent).endpoint(limits=impatient))
    hurried = dataclasses.replace(QUICK, total=0.4)
    assert "not complete after 0.4 s" in failure(serve(slow).endpoint(limits=hurried))


class Cancelled(Exception):
    pass


def drip(request: Request) -> None:
    request.stream()
    for _ in range(100):
        request.wfile.write(chunk("a"))
        time.sleep(0.05)


def wait(request: Request) -> None:
    """Sends nothing; notices when the other side goes."""
    if request.connection.recv(1) == b"":
        request.server.hung_up.set()


@pytest.mark.parametrize("behave", (drip, wait))
def test_cancel(serve, behave):
    """At once, with the connection closed, while words come or none do."""
    server = serve(behave)
    begin = time.monotonic()

    def check() -> None:
        if time.monotonic() - begin > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        ask(server.endpoint(limits=Limits()), check_cancelled=check)
    assert time.monotonic() - begin < 1.0
    assert server.hung_up.wait(2)


def test_cancel_in_a_pause_and_in_a_name_look_up(serve, monkeypatch):
    def check() -> None:
        if time.monotonic() - begin > 0.2:
            raise Cancelled

    server = serve(says(503, b""))
    begin = time.monotonic()
    with pytest.raises(Cancelled):
        ask(server.endpoint(limits=Limits(pauses=(60.0,))), check_cancelled=check)
    assert time.monotonic() - begin < 0.9 and len(server.requests) == 1

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.2))
    begin = time.monotonic()
    with pytest.raises(Cancelled):
        ask(Endpoint("mine", "http://slow.internal/v1", "m"), check_cancelled=check)
    assert time.monotonic() - begin < 0.9


def test_an_error_in_the_callers_code_comes_through(serve):
    def broken(text: str) -> None:
        raise KeyError(text)

    server = serve(drip)
    with pytest.raises(KeyError, match="a"):
        ask(server.endpoint(), on_text=broken)
    assert server.hung_up.wait(2)


def test_inside_a_running_event_loop(serve):
    """As the host calls nodes. Whatever they hold up there counts for no time limit."""

    async def node() -> str:
        return ask(server.endpoint(limits=dataclasses.replace(QUICK, silence=1.0)), on_text=busy)

    def busy(text: str) -> None:
        time.sleep(1.5)

    server = serve(says(200, chunk("A fox ") + chunk("in the snow.", "stop")))
    assert asyncio.run(node()) == "A fox in the snow."


def test_many_at_a_time(serve):
    """Each gets its own answer, and all share one thread."""

    def repeat(request: Request) -> None:
        time.sleep(0.1)
        request.answer(200, whole(request.body["messages"][0]["content"]))

    server = serve(repeat)
    endpoint_client._started.cache_clear()  # all of them start it
    before = len(client_threads())
    questions = [f"fox {number}" for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = pool.map(
            lambda q: complete(server.endpoint(), [{"role": "user", "content": q}], max_tokens=9), questions
        )
        assert list(texts) == questions
    assert len(client_threads()) == before + 1


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "zimage-endpoints"]


def test_the_environment_cannot_redirect(serve, monkeypatch, tmp_path):
    """A proxy is for the Internet only; a login in ~/.netrc does not take the place of the key."""
    proxy = serve(says(200, FINE))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://me:secret@127.0.0.1:{proxy.server_port}")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login other password wrong")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    server = serve(says(200, FINE))
    assert ask(server.endpoint(key_env="TEST_KEY")) == "A fox in the snow."
    assert not proxy.requests
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    connects = []
    monkeypatch.setattr(
        Request, "do_CONNECT", lambda r: connects.append(r) or r.answer(407, b""), raising=False
    )
    message = failure(Endpoint("mine", "https://chat.example/v1", "m", "TEST_KEY", limits=QUICK))
    assert "proxy refused the connection (HTTP 407)" in message and "secret" not in message
    assert connects[0].path == "chat.example:443" and KEY not in str(connects[0].headers)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"127.0.0.1:{proxy.server_port}")
    failure(Endpoint("mine", "https://chat.example/v1", "m", limits=QUICK))
    assert len(connects) == 2, "a proxy without its scheme"
    failure(server.endpoint(url=f"https://127.0.0.1:{server.server_port}/v1"))
    with monkeypatch.context() as without:
        without.setattr(socket, "getaddrinfo", unknown)
        without.setenv("no_proxy", "chat.example")
        for url in ("https://chat.example/v1", "http://other.example/v1"):
            assert "no address is known" in failure(Endpoint("mine", url, "m", limits=QUICK))
    assert len(connects) == 2 and not proxy.requests, (
        "a local address, one that is to be left out, plain http"
    )
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "socks5://127.0.0.1:1")
    message = failure(Endpoint("mine", "https://chat.example/v1", "m", limits=QUICK))
    assert "no http proxy" in message


def test_the_key_in_the_environment(serve, monkeypatch):
    server = serve(says(200, FINE))
    monkeypatch.setenv("TEST_KEY", f" {KEY}\n")
    ask(server.endpoint(key_env="TEST_KEY"))
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"
    for wrong in (f"{KEY}\r\nHost: elsewhere", f"{KEY}\u00e9"):
        monkeypatch.setenv("TEST_KEY", wrong)
        assert "TEST_KEY holds characters that no key has" in failure(server.endpoint(key_env="TEST_KEY"))
    monkeypatch.delenv("TEST_KEY")
    assert "TEST_KEY is not set" in failure(server.endpoint(key_env="TEST_KEY"))
    assert len(server.requests) == 1
