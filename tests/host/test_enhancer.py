"""The prompt enhancer on a real server: what it writes, keeps, tells and refuses. Nano writes."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.host.graphs import api_form, changed, node_of, ui_form
from tests.host.pictures import explained, saved_images
from tests.host.server import Result

WORKFLOW = "z_image_turbo_prompt_enhancer"
NODE = "ZImagePromptEnhancer"
LIVE = "zimage.text"


@pytest.fixture
def graph() -> dict:
    return api_form(WORKFLOW)


def text_graph(prompt: str = "a red apple", **inputs) -> dict:
    """Text encoder and enhancer alone, its text shown; only what is given is sent."""
    return {
        "1": {"class_type": "ZImageTextEncoderLoader", "inputs": {"text_encoder": "built-in: nano"}},
        "2": {"class_type": NODE, "inputs": {"clip": ["1", 0], "prompt": prompt, **inputs}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }


def shown(result: Result) -> str:
    assert result.ok, explained(result)
    return result.outputs["3"]["text"][0]


def report(result: Result) -> str:
    return result.outputs["2"]["text"][0]


def test_it_writes_by_default_with_the_plain_template(server) -> None:
    result = server.run(text_graph(max_tokens=40))
    text = shown(result)
    assert text == result.outputs["2"]["enhanced"][0] != "a red apple"
    assert "text encoder, template plain" in report(result) and "tokens read" in report(result)


def test_the_seed_decides(server) -> None:
    free = {"max_tokens": 24, "temperature": 2.0, "top_k": 0, "top_p": 1.0}
    texts = [shown(server.run(text_graph(seed=seed, **free))) for seed in (1, 2)]
    assert texts[0] != texts[1]
    assert server.run(text_graph(seed=3, max_tokens=16)).ok  # in between, so that the first is not remembered
    assert shown(server.run(text_graph(seed=1, **free))) == texts[0]


def test_the_text_grows_on_the_page_while_it_is_written(server) -> None:
    result = server.run(text_graph(seed=11, max_tokens=200, temperature=2.0, top_k=0, top_p=1.0))
    assert result.ok, explained(result)
    live = result.of_type(LIVE)
    assert live and {data["node"] for data in live} == {"2"}
    assert all(later["text"].startswith(first["text"]) for first, later in zip(live, live[1:], strict=False))
    assert any(str(data["node"]) == "2" and data["max"] == 200 for data in result.of_type("progress"))


def test_cancel_while_it_writes(server) -> None:
    def cancel(event: dict) -> None:
        if event["type"] == LIVE:
            server.interrupt()

    result = server.run(text_graph(seed=12, max_tokens=16384), on_event=cancel)
    assert result.interrupted and not result.errors
    assert server.run(text_graph(seed=13, max_tokens=16)).ok


def test_a_locked_text_is_the_result(server) -> None:
    result = server.run(text_graph(text="exactly this", locked=True))
    assert shown(result) == "exactly this"
    assert "locked" in report(result)


def test_pictures_carry_the_text_and_make_it_again(server, graph) -> None:
    """Both forms in the picture are those that were run, but with the text in them and locked."""
    workflow = ui_form(WORKFLOW)
    result = server.run(
        changed(graph, ZImagePromptEnhancer__seed=21, ZImagePromptEnhancer__max_tokens=24), workflow
    )
    (image,) = saved_images(server, result)
    node = node_of(graph, NODE)
    text = result.outputs[node]["enhanced"][0]
    prompt = json.loads(image.info["prompt"])
    assert prompt[node]["inputs"]["text"] == text and prompt[node]["inputs"]["locked"] is True
    (saved,) = [n for n in json.loads(image.info["workflow"])["nodes"] if n["type"] == NODE]
    assert saved["widgets_values"][1:3] == [text, True]
    again = server.run(changed(prompt, ZImagePromptEnhancer__seed=22))
    assert again.outputs[node]["enhanced"][0] == text
    (same,) = saved_images(server, again)
    assert same.tobytes() == image.tobytes()


def test_the_same_settings_again_write_nothing(server, graph) -> None:
    """What the picture carries must not make the next run of the same graph a new one."""
    once = changed(graph, ZImagePromptEnhancer__seed=31, ZImagePromptEnhancer__max_tokens=24)
    assert server.run(once).ok
    again = server.run(once)
    assert again.ok and not again.ran


@pytest.mark.parametrize(
    "inputs, reason",
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"template": "grand"}, "grand"),
        ({"source": "somewhere"}, "somewhere"),
        ({"clip": None}, "clip is empty"),
    ],
    ids=["empty prompt", "template", "source", "no clip"],
)
def test_bad_input_is_named(server, inputs, reason) -> None:
    graph = text_graph()
    graph["2"]["inputs"] = {k: v for k, v in {**graph["2"]["inputs"], **inputs}.items() if v is not None}
    result = server.run(graph)
    assert not result.ok
    assert reason in " ".join(error["message"] for error in result.errors)


UNHEARD = {"fixed_terms": "Zyzzyva 42", "mode": "faithful", "max_tokens": 16}


def test_a_failure_is_told_after_three_seeds(server) -> None:
    result = server.run(text_graph(seed=41, **UNHEARD))
    assert not result.ok
    (error,) = result.errors
    assert error["class_type"] == NODE
    assert "lost: Zyzzyva 42" in error["message"]
    assert all(f"seed {seed}" in error["message"] for seed in (41, 42, 43))


def test_a_failure_may_leave_the_prompt_as_it_is(server) -> None:
    result = server.run(text_graph(seed=41, on_failure="original prompt", **UNHEARD))
    assert shown(result) == "a red apple"
    assert "the prompt is used as it is" in report(result)


@pytest.fixture
def chat(server):
    """An endpoint of this name that answers each request with the next of `answers`; None breaks it off."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append(asked)
            content = self.server.answers.pop(0)
            body = json.dumps(
                {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
            ).encode()
            self.send_response(400 if content is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    settings = server.base / "user" / "zimage_endpoints.json"
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as chat:
        chat.asked, chat.answers = [], []
        threading.Thread(target=chat.serve_forever, daemon=True).start()
        entry = {"url": f"http://127.0.0.1:{chat.server_port}/v1", "model": "m"}
        settings.write_text(json.dumps({"mine": entry}), encoding="utf-8")
        yield chat
        settings.unlink()
        chat.shutdown()


def test_an_endpoint_writes_without_a_text_encoder(server, chat) -> None:
    chat.answers = ['```json\n{"revised_prompt": "A red fox in fresh snow."}\n```']
    graph = text_graph("a fox", source="mine", seed=51)
    del graph["2"]["inputs"]["clip"], graph["1"]
    assert "mine" in str(server.object_info(NODE)["input"])
    assert shown(server.run(graph)) == "A red fox in fresh snow."
    (asked,) = chat.asked
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert asked["seed"] == 51 and asked["max_tokens"] == 1024


def test_a_dead_endpoint_is_a_failure_like_any_other(server, chat) -> None:
    chat.answers = [None, None]
    stopped = server.run(text_graph("a fox", source="mine", seed=52))
    assert not stopped.ok and "mine" in stopped.errors[0]["message"]
    result = server.run(text_graph("a fox", source="mine", seed=52, on_failure="original prompt"))
    assert shown(result) == "a fox"
