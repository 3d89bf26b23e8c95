"""A chat completion from a server that speaks OpenAI's API: DashScope, Ollama, LM Studio, llama.cpp, vLLM ...

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from .endpoint_answer import ChatAnswer, UnusableAnswer, quoted, server_words
from .endpoint_settings import Endpoint, EndpointError, Limits, read_endpoints

__all__ = ["Endpoint", "EndpointError", "Limits", "complete", "read_endpoints"]

TICK = 0.1  # seconds between two looks at a cancel and at new text
STOPPING = 2.0  # seconds that a cancelled connection may take to close
ERROR_BYTES = 16_384
SEEDS = 2**31  # what every server takes; the host's seeds go to 2**64
STATUS = {  # what an HTTP status means here, and what to do
    401: "the server refused the key. Check {key}",
    403: "the server does not allow this. Check {key}, and that it may use {model!r}",
    404: "the server knows no such address or model. Check url, which mostly ends in /v1, and {model!r}",
    429: "the server takes no more requests for now. Wait, or check what the account may use",
}


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

    on_text gets the text so far, about ten times a second; check_cancelled ends the request by raising.
    Both are called in the calling thread, which may run an event loop of its own: the connection lives in
    another thread, and is closed when this returns or raises.

    Raises EndpointError. The key is sent to endpoint.chat_url only, and is in no error and no log.
    """
    key = endpoint.key()
    seed = None if seed is None else seed % SEEDS
    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    body = {
        **settings,
        **endpoint.extra_body,
        "model": endpoint.model,
        "messages": messages,
        "stream": True,
    }
    answer = ChatAnswer(max_tokens, secret=key)
    call = _Call(_ask(endpoint, {k: v for k, v in body.items() if v is not None}, key, answer))
    call.start()
    shown = ""
    try:
        while call.is_alive():
            if check_cancelled is not None:
                check_cancelled()
            call.join(TICK)
            if on_text is not None and (text := answer.text) != shown:
                shown = text
                on_text(text)
    finally:
        call.stop()
    if call.problem is not None:
        raise endpoint.error(call.problem)
    return call.answer


class _Call(threading.Thread):
    """One request in a thread and an event loop of its own.

    The host runs nodes inside its event loop, where no second one can run. What goes wrong is kept as words:
    the exceptions of the HTTP library carry the request with the key.
    """

    def __init__(self, request: Coroutine[Any, Any, str]):
        super().__init__(name="zimage-endpoint", daemon=True)
        self.answer = ""
        self.problem: str | None = "the request was stopped"
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(request)

    def run(self) -> None:
        try:
            self.answer = self._loop.run_until_complete(self._task)
            self.problem = None
        except asyncio.CancelledError:
            pass
        except _Failed as error:
            self.problem = str(error)
        except Exception as error:
            # The lines of code only: an exception of the HTTP library may hold the request.
            logging.error("Z-Image endpoint:\n%s", "".join(traceback.format_tb(error.__traceback__)))
            self.problem = f"the request failed ({type(error).__name__})"
        finally:
            # Not asyncio.run, which waits for a name look-up that cannot be interrupted.
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def stop(self) -> None:
        """Close the connection and end the thread; nothing happens when it has ended."""
        try:
            self._loop.call_soon_threadsafe(self._task.cancel)
        except RuntimeError:  # the loop is closed
            pass
        self.join(STOPPING)


class _Failed(Exception):
    """A request that did not work; the message says what happened and what to do."""


class _FailedForNow(_Failed):
    """A request that may work a little later, after `wait` seconds if the server says so."""

    def __init__(self, message: str, wait: float = 0.0):
        super().__init__(message)
        self.wait = wait


async def _ask(endpoint: Endpoint, body: dict, key: str | None, answer: ChatAnswer) -> str:
    try:
        return await asyncio.wait_for(_with_retries(endpoint, body, key, answer), endpoint.limits.total)
    except asyncio.TimeoutError:
        problem = f"the answer was not complete after {endpoint.limits.total:g} s. Try again, or ask for less"
    raise _Failed(problem)


async def _with_retries(endpoint: Endpoint, body: dict, key: str | None, answer: ChatAnswer) -> str:
    limits = endpoint.limits
    timeout = aiohttp.ClientTimeout(
        total=None, connect=limits.connect, sock_connect=limits.connect, sock_read=limits.silence
    )
    headers = {"Accept": "text/event-stream, application/json", "Accept-Encoding": "identity"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    async with aiohttp.ClientSession(
        # aiodns, the other resolver, does not run on every event loop.
        connector=aiohttp.TCPConnector(resolver=aiohttp.ThreadedResolver()),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
        timeout=timeout,
    ) as session:
        for attempt, pause in enumerate((*limits.pauses, None), 1):
            try:
                return await _attempt(session, endpoint, body, key, answer)
            except _FailedForNow as failure:
                problem, wait = str(failure), failure.wait
            if pause is None:
                raise _Failed(f"{problem} (after {attempt} attempts)")
            if wait > limits.retry_after:
                raise _Failed(f"{problem} (the server asks to wait {wait:.0f} s)")
            await asyncio.sleep(max(pause, wait))
    raise AssertionError("the last attempt returns or raises")


async def _attempt(
    session: aiohttp.ClientSession, endpoint: Endpoint, body: dict, key: str | None, answer: ChatAnswer
) -> str:
    limits, started = endpoint.limits, False
    try:
        async with session.post(
            endpoint.chat_url, json=body, allow_redirects=False, proxy=_proxy(endpoint)
        ) as response:
            started = True
            try:
                if response.status != 200:
                    raise await _refusal(endpoint, response, key)
                async for chunk in response.content.iter_any():
                    answer.feed(chunk)
                    if answer.ended:
                        break
                return answer.result()
            finally:
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()  # no farewell: the peer may never answer it
    except UnusableAnswer as error:
        raise _Failed(str(error)) from None
    except aiohttp.ConnectionTimeoutError:
        problem = f"no connection within {limits.connect:g} s. Check that the server runs and can be reached"
    except aiohttp.ServerTimeoutError:
        problem = f"the server was silent for {limits.silence:g} s. Try again, or set a longer timeout"
    except aiohttp.ClientConnectorCertificateError:
        problem = "the server's certificate is not trusted. Check the address and this machine's certificates"
    except aiohttp.ClientConnectorDNSError:
        problem = "no address is known for this name. Check url and the network"
    except aiohttp.ClientSSLError:
        problem = "no secure connection. Check whether the server wants http or https"
    except aiohttp.ClientProxyConnectionError:
        problem = f"this machine's proxy does not answer. Check HTTPS_PROXY, or set NO_PROXY={endpoint.host}"
    except aiohttp.ClientConnectorError as error:
        words = error.os_error.strerror or "connection failed"
        raise _FailedForNow(f"{words}. Check that the server runs, and the port in its url") from None
    except aiohttp.ClientHttpProxyError as error:
        problem = f"this machine's proxy refused the connection (HTTP {error.status})"
    except (aiohttp.ClientError, OSError) as error:
        so_far = f" after {len(answer.text)} characters" if started else ""
        problem = f"the connection broke off{so_far} ({type(error).__name__}). Try again"
    raise _Failed(problem)


async def _refusal(endpoint: Endpoint, response: aiohttp.ClientResponse, key: str | None) -> _Failed:
    """The failure behind any HTTP status but 200."""
    status = response.status
    if 300 <= status < 400:
        target = urlsplit(urljoin(endpoint.chat_url, response.headers.get("Location", "")))
        return _Failed(
            f"the server sends on to {target.scheme}://{target.netloc.rpartition('@')[2]}, which was not "
            "asked. Write that address into the settings if you trust it"
        )
    received = bytearray()
    async for chunk in response.content.iter_any():
        received += chunk
        if len(received) > ERROR_BYTES:
            break
    try:
        words = server_words(json.loads(received), key)
    except (ValueError, RecursionError):
        words = quoted(received, key)
    key_name = f"the key in {endpoint.key_env}" if endpoint.key_env else "whether it needs one: set key_env"
    meaning = STATUS.get(status, "the server failed" if status >= 500 else "the server refused the request")
    message = (
        f"{meaning.format(key=key_name, model=endpoint.model)} (HTTP {status}: {words or 'no reason given'})"
    )
    if status == 429 or status >= 500:
        return _FailedForNow(message, _retry_after(response.headers.get("Retry-After", "")))
    return _Failed(message)


def _retry_after(header: str) -> float:
    """Seconds of a Retry-After header: a number, or a date."""
    try:
        return float(header)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _proxy(endpoint: Endpoint) -> str | None:
    """This machine's proxy for https over the Internet, which sees only the host's name; None otherwise.

    Not the HTTP library's own way, which would also put a login of ~/.netrc in the place of the key.
    """
    name = urlsplit(endpoint.url).hostname
    if endpoint.is_local or not endpoint.url.startswith("https:") or urllib.request.proxy_bypass(name):
        return None
    proxy = urllib.request.getproxies().get("https")
    if proxy is None:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise _Failed(f"this machine's proxy is no http proxy. Set HTTPS_PROXY to one, or NO_PROXY={name}")
    return proxy
