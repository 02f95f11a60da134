"""Errors: a status that SDKs understand, and a body that they can read."""

from __future__ import annotations

import http.client
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx

from flashlet.serving.selftest.rule import NotApplicableError, expect, rule
from flashlet.serving.selftest.server import CHAT, COMPLETIONS, HELLO, Server, error_message, error_of

# Fields of the OpenAI API that mean nothing to a local server.
WITHOUT_EFFECT: dict[str, Any] = {
    "user": "someone",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "prompt_cache_key": "key",
    "prompt_cache_retention": "24h",
    "safety_identifier": "id",
    "verbosity": "low",
    "prediction": {"type": "content", "content": "hello"},
    "modalities": ["text"],
}
OPTIONAL = (
    "frequency_penalty logit_bias logprobs top_logprobs max_completion_tokens n presence_penalty "
    "response_format seed stop stream stream_options temperature top_p tools tool_choice user"
)
BAD_FIELDS: list[dict[str, Any]] = [
    {"messages": "hello"},
    {"messages": []},
    {"messages": [{"role": "nobody", "content": "hello"}]},
    {"temperature": "hot"},
    {"temperature": -1},
    {"max_tokens": "many"},
    {"stop": 5},
    {"n": 0},
    {"stream": "yes"},
]
BURST = 40  # requests at once, to fill a short queue
GIGANTIC = 10**12  # bytes


@rule
def error_body(server: Server) -> None:
    """An error body is {"error": {message, type, param, code}}; param and code are a string or null."""
    for response in (
        server.post(CHAT, server.chat_body(temperature="hot")),
        server.post(CHAT, b"{not json"),
        server.get("/v1/no-such-path"),
    ):
        error = error_of(response)
        expect(isinstance(error.get("message"), str) and error["message"], f"message: {error}")
        expect(isinstance(error.get("type"), str), f"type: {error}")
        for name in ("param", "code"):
            expect(name in error, f"no {name}: {error}")
            expect(error[name] is None or isinstance(error[name], str), f"{name} is {error[name]!r}")


@rule
def request_id(server: Server) -> None:
    """Every response carries x-request-id, errors included."""
    for response in (
        server.get("/health"),
        server.get("/v1/models"),
        server.post(CHAT, server.chat_body(max_tokens=1)),
        server.post(CHAT, b"{not json"),
        server.get("/v1/no-such-path"),
    ):
        expect(response.headers.get("x-request-id"), f"none on {response.request.method} {response.url.path}")


@rule
def bad_request_is_400(server: Server) -> None:
    """A bad request is 400: never 422, and never 5xx, which SDKs send again."""
    for fields in BAD_FIELDS:
        response = server.post(CHAT, server.chat_body(**fields))
        expect(response.status_code == 400, f"{response.status_code} for {fields}")
    for body in (b"", b"{not json", b"[1]", b'{"messages": "\xff"}'):
        response = server.post(CHAT, body)
        expect(response.status_code == 400, f"{response.status_code} for the body {body!r}")


@rule
def unknown_path_is_404(server: Server) -> None:
    """An unknown path is 404."""
    response = server.get("/v1/no-such-path")
    expect(response.status_code == 404, f"status {response.status_code}")


@rule
def too_large_is_413(server: Server) -> None:
    """A body over the limit is 413, before it was sent."""
    url = urlsplit(server.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.hostname or "", url.port, timeout=5)
    try:
        connection.putrequest("POST", CHAT)
        headers = {"content-type": "application/json", "content-length": str(GIGANTIC), **server.headers}
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(b'{"messages": ')
        status = connection.getresponse().status
    except TimeoutError:
        raise NotApplicableError("the server waits for the body, however long it is announced") from None
    except (OSError, http.client.HTTPException) as exc:
        expect(False, f"no answer: {type(exc).__name__}")
    finally:
        connection.close()
    expect(status == 413, f"status {status}")


@rule
def context_overflow(server: Server) -> None:
    """A prompt beyond the context is 400 "context_length_exceeded" and says how long it is and may be."""
    for path, body in _too_long(server):
        response = server.post(path, body)
        expect(response.status_code == 400, f"{path}: status {response.status_code}")
        error = error_of(response)
        expect(error.get("code") == "context_length_exceeded", f"{path}: code {error.get('code')!r}")
        numbers = "".join(
            char if char.isdigit() else " " for char in error["message"].replace(",", "")
        ).split()
        expect(len(set(numbers)) >= 2, f"{path}: {error['message']}")


@rule
def stream_fails_with_status(server: Server) -> None:
    """A stream that fails before its first token gets a real status."""
    for path, body in [*_too_long(server), (CHAT, server.chat_body(temperature="hot"))]:
        response = server.post(path, body | {"stream": True})
        expect(response.status_code == 400, f"{path}: status {response.status_code}")
        expect(error_of(response).get("message"), "no message")


@rule
def stream_fails_later(server: Server) -> None:
    """A later failure is `data: {"error": {...}}`, then `data: [DONE]`."""
    raise NotApplicableError("no request makes a sound server fail halfway")


@rule
def unsupported_field(server: Server) -> None:
    """An unsupported field is 400 and param names it."""
    for path, body in ((CHAT, server.chat_body()), (COMPLETIONS, server.completion_body())):
        response = server.post(path, body | {"no_such_field": 1})
        expect(response.status_code == 400, f"{path}: status {response.status_code}, the field was ignored")
        param = error_of(response).get("param")
        expect(param == "no_such_field", f"{path}: param is {param!r}")


@rule
def fields_without_effect(server: Server) -> None:
    """Fields that mean nothing here are accepted, such as user, store, metadata and service_tier."""
    for name, value in WITHOUT_EFFECT.items():
        response = server.post(CHAT, server.chat_body(max_tokens=1, **{name: value}))
        expect(response.status_code == 200, f"{name}: {error_message(response)}")
    stream_options = {"include_obfuscation": False}
    response = server.post(CHAT, server.chat_body(max_tokens=1, stream=True, stream_options=stream_options))
    expect(response.status_code == 200, f"include_obfuscation: {error_message(response)}")


@rule
def null_is_omitted(server: Server) -> None:
    """Null is accepted for any optional field."""
    for name in OPTIONAL.split():
        response = server.post(CHAT, {"messages": HELLO, "model": server.model, "max_tokens": 1, name: None})
        expect(response.status_code == 200, f"{name}: {error_message(response)}")


@rule
def overload(server: Server) -> None:
    """A full queue is 429 or 503 with retry-after, retry-after-ms and x-should-retry."""
    body = server.chat_body(max_tokens=16)
    try:
        with ThreadPoolExecutor(BURST) as pool:
            responses = list(pool.map(lambda _: server.post(CHAT, body), range(BURST)))
    except httpx.TimeoutException:
        raise NotApplicableError(f"{BURST} requests at once were queued for too long to wait") from None
    refused = [response for response in responses if response.status_code != httpx.codes.OK]
    if not refused:
        raise NotApplicableError(f"{BURST} requests at once did not fill the queue")
    for response in refused:
        expect(response.status_code in {429, 503}, f"status {response.status_code}")
        for name in ("retry-after", "retry-after-ms", "x-should-retry"):
            expect(name in response.headers, f"no {name}")
        error_of(response)


def _too_long(server: Server) -> list[tuple[str, dict[str, Any]]]:
    """Requests whose prompts exceed the context; a limit that is not told is taken for 131,072 at most."""
    text = "a b c d " * ((server.context_length or 131_072) // 4 + 64)
    chat = server.chat_body(messages=[{"role": "user", "content": text}])
    return [(CHAT, chat), (COMPLETIONS, server.completion_body(prompt=text))]
