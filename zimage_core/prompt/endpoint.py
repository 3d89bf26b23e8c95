"""A chat completion from a server that speaks OpenAI's API: DashScope, Ollama, LM Studio, llama.cpp, vLLM ...

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import logging
import threading
import traceback
import urllib.request
from collections.abc import Callable
from urllib.parse import urljoin, urlsplit

import aiohttp

from .endpoint_answer import MAX_BYTES, SPEC, ChatAnswer, UnusableAnswer, read_json, server_words
from .endpoint_settings import Endpoint, EndpointError, Limits

__all__ = ["Endpoint", "EndpointError", "Limits", "complete"]

TICK = 0.1  # seconds between two looks at a cancel and at new text
ERROR_BYTES = 16_384
SEEDS = 2**31  # what every server takes; the host's seeds go to 2**64
_STARTING = threading.Lock()
HEADERS = {"Accept": "text/event-stream, application/json", "Accept-Encoding": "identity"}


@functools.cache
def _started() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="zimage-endpoints", daemon=True).start()
    return loop


def _loop() -> asyncio.AbstractEventLoop:
    """The loop of all requests, in a thread: in the host's loop any node that works would hold them up."""
    with _STARTING:  # requests of several threads start one
        return _started()


def complete(
    endpoint: Endpoint,
    messages: list[dict],
    *,
    max_tokens: int,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    on_text: Callable[[str], None] | None = None,
    check_cancelled: Callable[[], None] | None = None,
) -> str:
    """The answer to `messages` ({"role", "content"}), without white space around it; thinking is left out.

    on_text gets the text so far, about ten times a second; check_cancelled ends the request by raising. Both
    are called in the calling thread. Raises EndpointError.

    The key is sent to endpoint.chat_url only, and is in no error and no log.
    """
    key = endpoint.key()
    seed = None if seed is None else seed % SEEDS
    body = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    body |= {**endpoint.extra_body, "model": endpoint.model, "messages": messages, "stream": True}
    body = {field: value for field, value in body.items() if value is not None}
    answer, shown = ChatAnswer(max_tokens, secret=key), ""
    request = asyncio.run_coroutine_threadsafe(_ask(endpoint, body, key, _proxy(endpoint), answer), _loop())
    try:
        while not request.done():
            if check_cancelled is not None:
                check_cancelled()
            concurrent.futures.wait([request], TICK)
            if on_text is not None and (text := answer.text) != shown:
                on_text(shown := text)
    finally:
        request.cancel()
    if error := request.exception():  # it holds the request with the key, so that only its words go on
        failure = endpoint.error(_explained(error, endpoint))
        failure.answered = answer.is_chat
        raise failure
    return request.result()


async def _ask(endpoint: Endpoint, body: dict, key: str | None, proxy: str | None, answer: ChatAnswer) -> str:
    limits = endpoint.limits
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver()),  # aiodns needs a certain loop
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=HEADERS | ({"Authorization": f"Bearer {key}"} if key else {}),
        timeout=aiohttp.ClientTimeout(limits.total, limits.connect, limits.silence, limits.connect),
        read_bufsize=MAX_BYTES // 2,  # half of the longest line
    ) as session:
        asked = {"json": body, "proxy": proxy, "allow_redirects": False}  # the key is meant for this server
        for pause in (*limits.pauses, None):
            async with session.post(endpoint.chat_url, **asked) as response:
                if response.status == 200:
                    try:
                        async for line in response.content:
                            answer.add(line)
                            if answer.ended:
                                break
                    except aiohttp.ClientPayloadError:  # it broke off, maybe after the end
                        if not answer.is_chat:
                            raise
                    return answer.result()
                problem, wait = await _refusal(endpoint, response, key)
            if wait is None or pause is None or wait > limits.retry_after:
                break
            await asyncio.sleep(max(pause, wait))
    raise UnusableAnswer(problem)


async def _refusal(
    endpoint: Endpoint, response: aiohttp.ClientResponse, key: str | None
) -> tuple[str, float | None]:
    """What any HTTP status but 200 means, and after how many seconds another attempt may help, if at all."""
    status, received, wait = response.status, b"", 0.0
    if 300 <= status < 400:
        target = urlsplit(urljoin(endpoint.chat_url, response.headers.get("Location", "")))
        return SPEC["redirect"].format(place=f"{target.scheme}://{target.netloc.rpartition('@')[2]}"), None
    async for chunk in response.content.iter_any():
        received += chunk
        if len(received) > ERROR_BYTES:
            break
    with contextlib.suppress(ValueError):  # a date, which chat servers do not send
        wait = float(response.headers.get("Retry-After", 0))
    words = SPEC["status"].get(str(status)) or SPEC["status"]["5xx" if status >= 500 else "other"]
    key_name = f"the key in {endpoint.key_env}" if endpoint.key_env else "whether it needs one: set key_env"
    reason = server_words(read_json(received) or received, key) or "no reason given"
    reason += f"; it asks to wait {wait:.0f} s" if wait else ""
    message = f"{words.format(key=key_name, model=endpoint.model)} (HTTP {status}: {reason})"
    return message, wait if status == 429 or status >= 500 else None


def _explained(error: BaseException, endpoint: Endpoint) -> str:
    for kind in type(error).__mro__:
        if words := SPEC["exceptions"].get(kind.__name__):
            return words.format(error=error, kind=type(error).__name__, endpoint=endpoint)
    logging.error("Z-Image endpoint:\n%s", "".join(traceback.format_tb(error.__traceback__)))  # lines of code
    return f"the request failed ({type(error).__name__})"


def _proxy(endpoint: Endpoint) -> str | None:
    """This machine's proxy for https over the Internet, which sees only the host's name; None otherwise.

    Not by aiohttp's trust_env=True, which also sends a login of ~/.netrc, in the place of the key
    (https://github.com/aio-libs/aiohttp/pull/7249).
    """
    name, proxy = urlsplit(endpoint.url).hostname, urllib.request.getproxies().get("https")
    local = endpoint.is_local or endpoint.url.startswith("http:")
    if not proxy or local or urllib.request.proxy_bypass(name):
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise endpoint.error(f"this machine's proxy is no http proxy. Set HTTPS_PROXY, or NO_PROXY={name}")
    return proxy
