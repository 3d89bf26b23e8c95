"""What chat servers are known to send, in every shape, and the text that is in it.

Shapes that one server or model is known for carry its name.
"""

from __future__ import annotations

import json
import random
import re

import pytest

from zimage_core.prompt.answer import read_answer
from zimage_core.prompt.endpoint_answer import ChatAnswer, UnusableAnswer

TEXT = "A fox in the snow."
KEY = 'sk-test-0123/45"6789abcdef'  # JSON may write it in other letters
DONE = "data: [DONE]\n\n"


def event(**fields: object) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def chunk(content: object = None, finish: object = None, message: dict | None = None, **delta: object) -> str:
    """One event of a stream; a message beside the delta where there is one."""
    delta |= {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(object="chat.completion.chunk", choices=[choice | ({"message": message} if message else {})])


def whole(content: object = TEXT, finish: str | None = "stop", **message: object) -> str:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return json.dumps({"object": "chat.completion", "choices": [choice | {"finish_reason": finish}]})


def read(body: str | bytes, max_tokens: int = 100) -> str:
    body = body.encode() if isinstance(body, str) else body
    answer = ChatAnswer(max_tokens, secret=KEY)
    for line in body.splitlines(keepends=True):
        if not answer.ended:
            answer.add(line)
    return answer.result()


WORDS = chunk("A fox ") + chunk("in the snow.")
FINE = WORDS + chunk(finish="stop") + DONE
PARTS = [{"type": "text", "text": "A fox "}, {"type": "text", "text": "in the snow."}]
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Hmm"}], "closed": True}
MANY_LINES = json.dumps(json.loads(whole()), indent=2)
USAGE = event(choices=[], usage={"total_tokens": 9})

GOOD = {
    # One object instead of a stream
    "no stream": whole(f" {TEXT}\n"),
    "no stream, over many lines": MANY_LINES,
    "no stream, no finish_reason": whole(finish=None),
    "no stream, empty lines first (DeepSeek)": "\n\n\n" + whole(),
    "no stream, a comment first (OpenRouter)": ": OPENROUTER PROCESSING\n\n" + whole(),
    "no stream, over many lines, not indented": json.dumps(json.loads(whole()), indent=0),
    "no stream, one event": f"data: {whole()}\n\n",
    "no stream, a byte order mark": b"\xef\xbb\xbf" + whole().encode(),
    "a list of one object": f"[{whole()}]",
    "one object a line": "\n".join(part[6:] for part in FINE.split("\n\n") if part),
    # The lines of a stream
    "a stream": FINE,
    "a byte order mark": b"\xef\xbb\xbf" + FINE.encode(),
    "carriage returns": FINE.replace("\n", "\r\n"),
    "no space after data:": FINE.replace("data: ", "data:"),
    "data: twice": FINE.replace("data: ", "data: data: "),
    "no empty lines (text-generation-webui)": FINE.replace("\n\n", "\n"),
    "no last line end": FINE.strip(),
    "an event over many lines": "data: " + "\ndata: ".join(MANY_LINES.split("\n")) + "\n\n",
    "comments (keep-alive)": ": keep-alive\n\n" + FINE.replace("data: {", ": ping\n\n:\n\ndata: {"),
    "event, id and retry": FINE.replace("data: {", "event: message\nid: 7\nretry: 3000\ndata: {"),
    "a ping with data": "event: ping\ndata: {}\n\n" + event(type="ping") + FINE,
    "empty data": "data:\n\ndata: \n\n" + FINE,
    # Its end
    "no [DONE]": FINE.removesuffix(DONE),
    "no finish_reason": WORDS + DONE,
    "an empty finish_reason": WORDS + chunk(finish="") + DONE,
    "'null' as finish_reason": chunk(TEXT, "null") + DONE,
    "nothing after [DONE] is read": FINE + chunk("No!") + "data: rubbish\n\n",
    "usage after the end (OpenAI)": WORDS + chunk(finish="stop") + USAGE + DONE,
    "usage in each event (vLLM)": USAGE + chunk("A fox ") + USAGE + chunk("in the snow.", "stop") + USAGE,
    "stop in each event (Gemini)": chunk("A fox ", "stop") + chunk("in the snow.", "stop") + DONE,
    "the filter's findings first (Azure)": event(choices=[], prompt_filter_results=[{"index": 0}]) + FINE,
    "the filter's findings between (Azure)": WORDS
    + event(choices=[{"index": 0, "finish_reason": None, "content_filter_offsets": {}}])
    + chunk(finish="stop"),
    # The fields of a message
    "roles": chunk("", role="assistant")
    + chunk("A fox ", role="")
    + chunk("in the snow.", "stop", role=None),
    "delta null": event(choices=[{"delta": None}]) + FINE,
    "error null": event(
        error=None, choices=[{"delta": {"content": TEXT}, "finish_reason": "stop", "error": None}]
    ),
    "refusal null (OpenAI)": whole(refusal=None, tool_calls=None, function_call=None, audio=None),
    "thinking in reasoning_content (DeepSeek)": chunk(reasoning_content="Hmm", content="") + FINE,
    "thinking in reasoning (Ollama, vLLM)": chunk(reasoning="Hmm") + FINE,
    "thinking in both (OpenRouter)": chunk("", reasoning="Hm", reasoning_details=[{"text": "Hm"}]) + FINE,
    "thinking, no stream": whole(reasoning_content="Hmm"),
    "parts, no stream": whole(PARTS),
    "parts in a stream (Mistral)": chunk(PARTS[:1]) + chunk(PARTS[1:], "stop") + DONE,
    "thinking in parts (Mistral)": chunk([THOUGHT]) + WORDS + chunk("", "stop") + DONE,
    "thinking in parts, no stream": whole([THOUGHT, *PARTS]),
    "reasoning in parts": whole(
        [{"type": "reasoning", "text": "Hmm"}, {"type": "output_text", "text": TEXT}]
    ),
    "one part": whole({"type": "text", "text": TEXT}),
    "a part without a type": whole([{"text": TEXT}]),
    "parts that are texts": whole(["A fox ", "in the snow."]),
    # A whole message in a stream
    "deltas, then the whole (MiniMax)": WORDS + f"data: {whole()}\n\n",
    "an empty delta and the whole": WORDS + chunk(finish="stop", message={"content": TEXT}) + DONE,
    "the whole at the end only": chunk(role="assistant") + chunk(finish="stop", message={"content": TEXT}),
    "message and delta alike (text-generation-webui)": chunk("A fox ", message={"content": "A fox "})
    + chunk("in the snow.", "stop", message={"content": "in the snow."})
    + DONE,
    "message with all so far (Perplexity)": chunk("A fox ", message={"content": "A fox "})
    + chunk("in the snow.", "stop", message={"content": TEXT}),
}


@pytest.mark.parametrize("body", GOOD.values(), ids=GOOD)
def test_what_servers_send_when_all_is_well(body):
    assert read(body) == TEXT


BAD = {
    "not json": ("{no", "expected JSON"),
    "rubbish": ("hello \x00 there", "expected JSON, the server sent 'hello .* there'"),
    "a web page": ("<!DOCTYPE html>\n\n<title>Welcome</title>", "web page.*lack /v1"),
    "nested": ("[" * 100_000, "expected JSON"),
    "another object": ('{"models": []}', "no chat completion but.*models"),
    "nothing": ("", "no chat completion but 'nothing'"),
    "only comments": (": keep-alive\n\n" * 3, "no chat completion but 'nothing'"),
    "no choices": (USAGE + DONE, "no chat completion but.*usage"),
    "odd choices": ('data: {"choices": [7]}\n\ndata: {"choices": 3}\n\n' + DONE, "no chat completion"),
    "odd parts": ('{"choices": [{"delta": "x", "finish_reason": {}}]}', "incomplete"),
    "not a text": (whole([1]), "no text"),
    "a picture": (whole([{"type": "image_url", "image_url": {"url": "data:"}}]), "empty"),
    "an empty stream": (chunk(finish="stop") + DONE, "empty"),
    "an empty text": (whole(""), "empty"),
    "only thinking": (chunk(reasoning_content="Hmm") + chunk(finish="stop") + DONE, "only thought"),
    "only thinking, no stream": (whole(None, reasoning="Hmm"), "only thought"),
    "a refusal (OpenAI)": (
        chunk(refusal="I ") + chunk(refusal="can't.", finish="stop"),
        'refused: "I can\'t."',
    ),
    "a refusal, no stream": (whole(None, refusal="No."), "refused: 'No.'"),
    "no end, a message beside each delta": (
        chunk("A fox ", message={"content": "A fox "}),
        "broke off after 5",
    ),
    "no end": (WORDS, "broke off after 18 characters"),
    "half an event": (WORDS + chunk(" now")[:-9], "expected JSON|broke off"),
    # Errors with HTTP status 200
    "an error as an answer": ('{"error": {"message": "model is loading"}}', "reports 'model is loading'"),
    "an error of text": ('{"error": "no memory"}', "reports 'no memory'"),
    "an error in a stream": (WORDS + event(error={"message": "no memory", "code": 500}), "'no memory'"),
    "an error, then [DONE]": (WORDS + event(error="no memory") + DONE, "'no memory'"),
    "an error and an end (OpenRouter)": (
        event(
            error={"code": 502, "message": "gone"},
            choices=[{"delta": {"content": ""}, "finish_reason": "error"}],
        ),
        "reports 'gone'",
    ),
    "an error in a choice": (event(choices=[{"delta": {}, "error": {"message": "gone"}}]), "reports 'gone'"),
    "an event of errors (TGI)": ('event: error\ndata:{"error":"too long","error_type":"x"}\n\n', "too long"),
    "an event of errors, message only": (
        WORDS + 'event: error\ndata: {"message": "gone"}\n\n',
        "reports 'gone'",
    ),
    "a field of errors (llama.cpp)": (
        'error: {"code":400,"message":"context size"}\n\n' + DONE,
        "'context size'",
    ),
    "an error without data: (Lemonade)": (
        WORDS + '{"error": {"message": "context size"}}\n',
        "'context size'",
    ),
    "an error that is an object (vLLM)": (
        event(object="error", message="too long", code=400) + DONE,
        "'too long'",
    ),
    "an error of FastAPI": ('{"detail": "Not authenticated"}', "reports 'Not authenticated'"),
    "a list of errors of FastAPI": (
        '{"detail": [{"loc": ["body"], "msg": "field required"}]}',
        "'field required'",
    ),
    "an error in a list (Gemini)": (
        '[{"error": {"code": 400, "message": "no such model"}}]',
        "'no such model'",
    ),
    "an error with a code (Baidu)": ('{"error_code": 336003, "error_msg": "too long"}', "'too long'"),
    "an error with a code (FastChat)": (WORDS + event(text="", error_code=50002) + DONE, "50002"),
    "an error in base_resp (MiniMax)": (
        '{"choices": null, "base_resp": {"status_code": 1004, "status_msg": "login fail"}}',
        "'login fail'",
    ),
    "an error of DashScope": ('{"code": "InvalidParameter", "message": "bad value"}', "'bad value'"),
    "a text as data": ('data: "out of memory"\n\n', "'out of memory'"),
}


@pytest.mark.parametrize(("body", "words"), BAD.values(), ids=BAD)
def test_what_is_no_answer(body, words):
    with pytest.raises(UnusableAnswer, match=words):
        read(body)


ENDS = (
    "stop",
    "STOP",
    "eos",
    "eos_token",
    "stop_sequence",
    "end_turn",
    "COMPLETE",
    "done",
    "finished",
    "unheard-of",
)
CUT = {
    "incomplete.*100 tokens": ("length", "LENGTH", "max_tokens", "MAX_TOKENS", "max_output_tokens",
                               "model_length", "model_context_window_exceeded", "ERROR_LIMIT"),
    "content filter": ("content_filter", "content_filtered", "sensitive", "SAFETY", "refusal", "RECITATION",
                       "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "guardrail_intervened", "ERROR_TOXIC"),
    "a tool": ("tool_calls", "function_call", "tool_use", "MALFORMED_FUNCTION_CALL"),
    "broke the answer off .*{reason}": ("error", "network_error", "insufficient_system_resource", "abort",
                                        "cancelled", "USER_CANCEL", "timeout", "repetition", "incomplete",
                                        "OTHER"),
}  # fmt: skip


@pytest.mark.parametrize(
    "field", ("reasoning_content", "reasoning", "reasoning_details", "reasoning_text", "thinking")
)
def test_only_thinking(field):
    """A list or a text, in a stream or not: it is no answer, and the error says so."""
    for thought in ("Hmm", [{"type": "reasoning.text", "text": "Hmm"}]):
        for body in (chunk(finish="stop", **{field: thought}) + DONE, whole(None, **{field: thought})):
            with pytest.raises(UnusableAnswer, match="only thought"):
                read(body)


@pytest.mark.parametrize("reason", ENDS)
def test_reasons_that_are_an_end(reason):
    assert read(WORDS + chunk(finish=reason)) == read(whole(finish=reason)) == TEXT


@pytest.mark.parametrize(("reason", "words"), [(reason, words) for words in CUT for reason in CUT[words]])
def test_reasons_that_are_no_end(reason, words):
    end = chunk(finish=reason)
    for body in (WORDS + end + DONE, whole(finish=reason), WORDS + end + USAGE, WORDS + end + chunk("")):
        with pytest.raises(UnusableAnswer, match=words.format(reason=reason.lower())):
            read(body)


def test_thinking_to_the_limit():
    """The advice is another one than for an answer that is too long."""
    with pytest.raises(UnusableAnswer, match="100 tokens.*thinking off"):
        read(chunk(reasoning="Hm", finish="length") + DONE)
    with pytest.raises(UnusableAnswer) as caught:
        read(chunk("A fox", reasoning="Hm", finish="length") + DONE)
    assert "thinking" not in str(caught.value)


def test_thinking_in_the_text_is_left_to_the_reader():
    """As a server sends it that knows nothing of the model's own marks."""
    parts = ("<think>", "Hmm, ", "a fox.", "</think>", "\n\n", "A fox ", "in the snow.")
    text = read("".join(map(chunk, parts)) + chunk(finish="stop"))
    assert read_answer(text) == TEXT


def test_a_character_in_two_halves():
    first, second = (chunk("?").replace("?", half) for half in (r"\ud83e", r"\udd8a"))
    assert read(first + second + DONE) == "\U0001f98a"
    assert read(first + DONE).encode() == b"\xef\xbf\xbd"  # the sign for a character that cannot be read


@pytest.mark.parametrize("seed", range(20))
def test_shapes_mix(seed):
    """Comments, pings, usage, thinking and other line ends anywhere in a stream change nothing."""
    rng = random.Random(seed)
    extras = [
        ": ping\n\n",
        "data:\n\n",
        "event: ping\ndata: {}\n\n",
        USAGE,
        chunk(""),
        chunk(),
        "\n",
        "id: 1\n",
        chunk(reasoning="Hmm"),
        chunk([THOUGHT]),
        event(choices=[{"index": 0, "delta": None}]),
    ]
    words = re.findall(r"\S+\s*", TEXT)
    shapes = [lambda w: chunk(w), lambda w: chunk([{"type": "text", "text": w}]), lambda w: chunk([w])]
    events = [rng.choice(shapes)(word) for word in words] + [chunk(finish=rng.choice(ENDS))]
    body = "".join("".join(rng.choices(extras, k=rng.randrange(3))) + one for one in events)
    body += rng.choice(("", DONE, USAGE + DONE, f"data: {whole()}\n\n"))
    assert read(rng.choice((body, body.replace("\n", "\r\n"), body.replace("data: ", "data:")))) == TEXT


def test_what_does_not_end(monkeypatch):
    with pytest.raises(UnusableAnswer, match="does not end"):
        read(chunk("more and ") * 100, max_tokens=8)
    monkeypatch.setattr("zimage_core.prompt.endpoint_answer.MAX_BYTES", 2**20)
    for kind in (chunk(reasoning_content="so "), ": ping\n\n", "{", "data: " + "x" * 10_000 + "\n"):
        with pytest.raises(UnusableAnswer, match="does not end: 1 MB"):
            read(kind * (2**21 // len(kind)))


def test_a_key_is_not_repeated():
    for body in (
        "{" + KEY,
        json.dumps({"error": f"bad key {KEY}"}),
        KEY,
        f"<p>{KEY}",
        whole(None, refusal=KEY),
        json.dumps({"x": KEY}),
        json.dumps({"x": KEY})[:-1],
        json.dumps({"x": KEY}).replace("/", r"\/")[:-1],
        json.dumps([{"msg": KEY, "error": KEY}]),
    ):
        with pytest.raises(UnusableAnswer) as caught:
            read(body)
        assert KEY not in str(caught.value) and KEY[:12] not in str(caught.value)


def test_long_words_of_a_server_are_cut():
    with pytest.raises(UnusableAnswer) as caught:
        read(json.dumps({"error": "no " * 1000}))
    assert len(str(caught.value)) < 400
