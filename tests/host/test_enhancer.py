"""The prompt enhancer on a real server: what it writes, keeps, tells and refuses. Nano writes."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.host.graphs import api_form, changed, node_of, ui_form
from tests.host.pictures import explained, saved_images
from tests.host.server import PACK_ROOT, Result

WORKFLOW = "02 Prompt enhancer (nano demo)"
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


def test_thinking_is_said_to_have_no_effect_where_it_has_none(server) -> None:
    """nano's text encoder cannot think."""
    texts = {}
    for thinking in (True, False):
        result = server.run(text_graph(seed=4, max_tokens=16, temperature=0.0, thinking=thinking))
        texts[thinking] = shown(result)
        assert ("thinking has no effect" in report(result)) is thinking
    assert texts[True] == texts[False]


def test_a_prompt_of_another_system_is_the_same_prompt(server) -> None:
    settings = {"mode": "faithful", "seed": 45, "temperature": 0}
    texts = (f"a red apple{end}on white" for end in ("\n", "\r\n"))
    unix, windows = (shown(server.run(text_graph(text, **settings))) for text in texts)
    assert unix == windows and unix.startswith("a red apple\non white")


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


LISTED = json.loads((PACK_ROOT / "zimage_core" / "prompt" / "additions.json").read_text(encoding="utf-8"))


def additions(result: Result, prompt: str, language: str = "en") -> list[str]:
    """What stands after the prompt, which must be there letter by letter."""
    text, comma = shown(result), {"en": ", ", "zh": "\uff0c"}[language]
    assert text.startswith(prompt)
    found = text.removeprefix(prompt).removeprefix(comma).split(comma) if text != prompt else []
    assert f"added: {', '.join(found) or 'nothing'}" in report(result)
    places = [[i for i, slot in enumerate(LISTED.values()) if phrase in slot[language]] for phrase in found]
    assert all(len(place) == 1 for place in places), found
    assert sorted(place[0] for place in places) == sorted({place[0] for place in places}), "one for each slot"
    return found


@pytest.mark.parametrize("inputs", [{"mode": "faithful"}, {"template": "faithful"}], ids=["mode", "template"])
def test_faithful_keeps_the_prompt_and_adds_listed_phrases(server, inputs) -> None:
    result = server.run(text_graph('  a red apple,\n two "pears" ', seed=41, temperature=2.0, **inputs))
    assert shown(result).startswith('a red apple,\n two "pears"')
    assert additions(result, 'a red apple,\n two "pears"')
    assert report(result).startswith("text encoder, faithful\nseed 41: ") and "7 choices made" in report(
        result
    )
    live = [data["text"] for data in result.of_type(LIVE)]
    assert live and all(shown(result).startswith(text) for text in live)


def test_faithful_in_chinese_and_other_languages(server) -> None:
    fox = "\u4e00\u53ea\u7ea2\u8272\u7684\u72d0\u72f8"
    assert additions(server.run(text_graph(fox, seed=42, mode="faithful", temperature=2.0)), fox, "zh")
    result = server.run(text_graph("un renard dans la neige", seed=42, mode="faithful", temperature=2.0))
    allowed = {*LISTED["focus"]["en"], *LISTED["finish"]["en"]}
    assert {*additions(result, "un renard dans la neige")} <= allowed
    assert "2 choices made" in report(result)


def test_faithful_names_the_fixed_terms_that_the_prompt_lacks(server) -> None:
    fixed = {"fixed_terms": "apple, Zyzzyva 42", "mode": "faithful"}
    result = server.run(text_graph("a red apple", seed=43, **fixed))
    additions(result, "a red apple")
    assert "fixed terms that are not in the prompt: Zyzzyva 42" in report(result)


def test_the_likeliest_additions_do_not_hang_on_chance(server) -> None:
    """The seed shuffles the lists, but the widgets that are not read in this mode change nothing."""
    settings = {"mode": "faithful", "seed": 44, "temperature": 0}
    text = shown(server.run(text_graph("a red apple", **settings)))
    unread = {"language": "zh", "thinking": True, "max_tokens": 16, "top_k": 1, "top_p": 0.1, "min_p": 0.9,
              "repetition_penalty": 2.0, "on_failure": "original prompt"}  # fmt: skip
    assert shown(server.run(text_graph("a red apple", **settings, **unread))) == text


def test_lost_terms_put_the_prompt_before_the_description(server) -> None:
    result = server.run(text_graph(seed=41, fixed_terms="Zyzzyva 42", max_tokens=16))
    assert shown(result).startswith("a red apple\n\n") and len(shown(result)) > len("a red apple\n\n")
    lines = report(result).splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith("seed")] == ["seed 41", "seed 42"]
    assert "the prompt itself is put before the description" in lines
    assert lines[-1] == "not in the description: Zyzzyva 42"


SILENCE = "..."


@pytest.fixture
def chat(server):
    """An endpoint of this name that answers each request with the next of `answers`.

    None breaks it off; SILENCE begins an answer and waits until the other side goes.
    """

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append(asked)
            content = self.server.answers.pop(0)
            if content == SILENCE:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b'data: {"choices": [{"delta": {"content": "A fox"}}]}\n\n')
                if self.connection.recv(1) == b"":
                    self.server.hung_up.set()
                return
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
        chat.asked, chat.answers, chat.hung_up = [], [], threading.Event()
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


def test_an_endpoint_chooses_in_one_call_and_only_what_is_listed(server, chat) -> None:
    focus = LISTED["focus"]["en"][0]
    told = {"view": "seen by a dog", "focus": focus, "subject": "a dog", "light": None}
    for answer, expected in (
        (f"```json\n{json.dumps(told)}\n```", [focus]),
        ("", []),
        ("I would rather draw a dog.", []),
    ):
        chat.asked.clear()
        chat.answers = [answer]
        result = server.run(text_graph("a fox", source="mine", seed=53 + len(answer), mode="faithful"))
        assert additions(result, "a fox") == expected
        (asked,) = chat.asked
        offered = asked["messages"][1]["content"]
        assert all(phrase in offered for phrase in LISTED["view"]["en"]) and "Request:\na fox\n" in offered
    assert "no JSON object" in report(result)


def test_a_dead_endpoint_is_a_failure_like_any_other(server, chat) -> None:
    chat.answers = [None, None]
    stopped = server.run(text_graph("a fox", source="mine", seed=52))
    assert not stopped.ok and "mine" in stopped.errors[0]["message"]
    for mode in ("normal", "faithful"):
        chat.answers = [None, None]
        inputs = {"source": "mine", "seed": 52, "mode": mode}
        result = server.run(text_graph("a fox", on_failure="original prompt", **inputs))
        assert shown(result) == "a fox" and "the prompt is used as it is" in report(result)


def test_cancel_while_an_endpoint_is_silent(server, chat) -> None:
    """The connection ends within a second."""
    ended = []

    def cancel(event: dict) -> None:
        if event["type"] == LIVE:
            server.interrupt()
            ended.append(chat.hung_up.wait(1.0))

    chat.answers = [SILENCE, "A fox in the snow."]
    result = server.run(text_graph("a fox", source="mine", seed=53), on_event=cancel)
    assert result.interrupted and not result.errors
    assert ended == [True]
    assert shown(server.run(text_graph("a fox", source="mine", seed=54))) == "A fox in the snow."


def test_variants_are_what_the_next_seeds_write(server) -> None:
    free = {"max_tokens": 24, "temperature": 2.0, "top_k": 0, "top_p": 1.0}
    result = server.run(text_graph(seed=70, variants=3, **free))
    texts = result.outputs["2"]["variants"]
    assert shown(result) == texts[0] and len(set(texts)) == 3
    assert shown(server.run(text_graph(seed=72, **free))) == texts[2]
