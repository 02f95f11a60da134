"""Health, keys and what is answered while the model loads."""

from __future__ import annotations

from flashlet.serving.selftest.rule import NotApplicableError, expect, rule
from flashlet.serving.selftest.server import CHAT, COMPLETIONS, NOT_THERE, Loading, Server, error_of

OPEN = ("/v1/models", "/metrics", "/tokenizer_info", "/version", "/openapi.json")
RUNS = (CHAT, COMPLETIONS, "/v1/embeddings", "/tokenize", "/detokenize")


@rule
def healthy(server: Server) -> None:
    """/health is 2xx when a request would be served."""
    response = server.get("/health", headers={})
    expect(response.is_success, f"status {response.status_code}")


@rule
def unhealthy_while_loading(server: Server) -> None:
    """/health is 503 with an error body while the model loads."""
    response = _loading(server).health
    expect(response.status_code == 503, f"status {response.status_code}")
    error_of(response)


@rule
def refused_while_loading(server: Server) -> None:
    """A request is 503 with retry-after while the model loads."""
    response = _loading(server).chat
    expect(response.status_code == 503, f"status {response.status_code}")
    error_of(response)
    for name in ("retry-after", "retry-after-ms"):
        expect(name in response.headers, f"no {name}")


@rule
def key_is_asked_for(server: Server) -> None:
    """A missing or wrong key is 401, on every path that runs or reveals anything."""
    _needs_key(server)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}):
        for path in OPEN:
            status = server.get(path, headers=headers).status_code
            expect(status == 401 or status in NOT_THERE, f"GET {path}: status {status}")
        for path in RUNS:
            response = server.post(path, {}, headers=headers)
            status = response.status_code
            expect(status == 401 or status in NOT_THERE, f"POST {path}: status {status}")
    error_of(server.post(CHAT, {}, headers={}))


@rule
def key_headers(server: Server) -> None:
    """The key is taken from `Authorization: Bearer` and from `x-api-key`."""
    key = _needs_key(server)
    for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
        status = server.post(CHAT, server.chat_body(max_tokens=1), headers=headers).status_code
        expect(status == 200, f"status {status} with {next(iter(headers))}")


@rule
def constant_time(server: Server) -> None:
    """Keys are compared in constant time."""
    raise NotApplicableError("the network's noise hides it: see the server's source")


def _loading(server: Server) -> Loading:
    if server.loading is None:
        raise NotApplicableError("the model was loaded before the test began")
    return server.loading


def _needs_key(server: Server) -> str:
    """The key; raises NotApplicableError if the server works without one."""
    if server.post(CHAT, server.chat_body(max_tokens=1), headers={}).is_success or not server.api_key:
        raise NotApplicableError("the server asks for no key")
    return server.api_key
