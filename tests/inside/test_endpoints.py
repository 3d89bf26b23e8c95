"""Chat servers that the host's owner set up in the user directory."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import folder_paths
import pytest

from tests.host.inside import extension_module

enhancer = extension_module("nodes.enhancer")
endpoints = extension_module("nodes.host.writing.endpoints")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path))
    return tmp_path / "zimage_endpoints.json"


def test_without_a_file_there_are_no_names_and_an_error_names_it(file: Path) -> None:
    assert endpoints.endpoint_names() == []
    with pytest.raises(RuntimeError) as error:
        endpoints.endpoint("a")
    assert f"there is no {file}" in str(error.value)


def test_names_and_endpoints(file: Path) -> None:
    entries = {name: {"url": "http://localhost:1/v1", "model": name.upper()} for name in ("b", "a")}
    file.write_text(json.dumps(entries))
    assert endpoints.endpoint_names() == ["b", "a"]
    assert endpoints.endpoint("a").model == "A"
    with pytest.raises(RuntimeError) as error:
        endpoints.endpoint("c")
    assert "No endpoint 'c'" in str(error.value) and "'b', 'a'" in str(error.value)


def test_a_broken_file_is_named(file: Path) -> None:
    file.write_text("{")
    assert endpoints.endpoint_names() == []
    with pytest.raises(RuntimeError) as error:
        endpoints.endpoint("a")
    assert f"{file} is no JSON" in str(error.value)


DEAD, MUTE = 400, "nothing"


@pytest.fixture
def chat(file: Path) -> Iterator[ThreadingHTTPServer]:
    """Answers each request with the next of `answers`: a status, a text, or MUTE."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = self.server.answers.pop(0)
            if answer == MUTE:
                self.connection.recv(1)
                return
            body = json.dumps({"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]})
            self.send_response(answer if answer == DEAD else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        entry = {"url": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "timeout": 0.5}
        file.write_text(json.dumps({"mine": entry}))
        yield server
        server.shutdown()


def three(**given: object) -> tuple[list[str], list[str]]:
    values = {widget.id: widget.default for widget in enhancer.widgets()}
    return enhancer.written("a fox", None, values | {"source": "mine", "variants": 3} | given, None)


@pytest.mark.parametrize("mode", ["normal", "faithful"])
@pytest.mark.parametrize("failure", [DEAD, MUTE])
def test_after_a_failure_no_more_variants_are_asked_for(failure, mode: str, chat) -> None:
    """A server that is silent would be waited for once more each time."""
    chat.answers = ["{}" if mode == "faithful" else "A red fox.", failure, "Not asked for."]
    texts, notes = three(mode=mode)
    assert texts == ["a fox" if mode == "faithful" else "A red fox."]
    assert notes[-2].startswith("- Endpoint 'mine'") and notes[-1] == "1 of 3 were written"
    assert chat.answers == ["Not asked for."]
    chat.answers = [failure, "Not asked for."]
    with pytest.raises(ValueError, match=r"^- Endpoint 'mine'.*\nNo description was written"):
        three(mode=mode)
    chat.answers = [failure]
    assert three(mode=mode, on_failure="original prompt")[0] == ["a fox"]


def test_notes_have_the_numbers_of_the_buttons(chat) -> None:
    """An answer without a text has none, and the next one is asked for."""
    chat.answers = ["A red fox.", '{"rubbish": 1}', "A grey fox."]
    texts, notes = three()
    assert texts == ["A red fox.", "A grey fox."]
    assert [note.split()[0] for note in notes[1:-1]] == ["1.", "-", "-", "2."]
    assert notes[-1] == "2 of 3 were written"
