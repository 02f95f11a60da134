"""What happens around a stream: clients that leave, silence, and slow readers."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from flashlet.serving.api import sse
from flashlet.serving.api.chunks import encode_json
from flashlet.serving.errors import EngineFailedError

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

COMPLETIONS = "/v1/completions"
ENDLESS = {"prompt": "the user", "max_tokens": 400, "ignore_eos": True}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks(server: Server, stream: bool, n: int) -> None:
    server.executor.delay = 0.01
    stats = server.service.model.engine_loop.stats  # type: ignore[union-attr]
    aborted = server.service.metrics.finished["abort"]
    body = json.dumps(ENDLESS | {"stream": stream, "n": n}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head + body)
        wait_until(lambda: stats().running == n)
    started = stats().steps
    server.wait_idle()
    assert stats().steps - started < 300  # of 400
    wait_until(lambda: server.service.metrics.finished["abort"] == aborted + n)


def test_leaving_while_queued(start_server: Callable[..., Server]) -> None:
    server = start_server(engine={"max_sequences": 1})
    server.executor.delay = 0.01
    stats = server.service.model.engine_loop.stats  # type: ignore[union-attr]
    with server.client.stream("POST", COMPLETIONS, json=ENDLESS | {"stream": True}) as response:
        lines = response.iter_lines()  # kept: dropping it closes the connection
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + COMPLETIONS, json=ENDLESS | {"stream": True}, timeout=0.2)
        wait_until(lambda: stats().waiting == 0)
        assert stats().running == 1
    server.wait_idle()


def test_silence_is_broken_by_comments(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEPALIVE", 0.05)
    server.executor.delay = 0.5
    body = {"prompt": "a", "max_tokens": 2, "ignore_eos": True, "stream": True}
    text = server.post(COMPLETIONS, **body).text
    comments = [line for line in text.split("\n\n") if line.startswith(":")]
    assert len(comments) >= 4 and text.startswith(":") and text.endswith("data: [DONE]\n\n")


def test_no_comments_while_tokens_flow(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEPALIVE", 1.5)
    server.executor.delay = 0.02
    text = server.post(COMPLETIONS, prompt="a", max_tokens=100, ignore_eos=True, stream=True).text
    assert "\n:" not in text and not text.startswith(":")


def test_a_reader_that_stops_does_not_stop_others(server: Server) -> None:
    body = json.dumps({**ENDLESS, "stream": True, "n": 8, "logprobs": 20}).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with connection:
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head + body)
        assert server.post(COMPLETIONS, prompt="the user", max_tokens=5).status_code == 200
    server.wait_idle()


def test_events_are_complete_lines(server: Server) -> None:
    """Each network event is whole JSON, and no character is split."""
    with server.client.stream("POST", COMPLETIONS, json=ENDLESS | {"stream": True, "seed": 1}) as response:
        data = b"".join(response.iter_raw())
    events = data.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events[:-2]]
    assert len(texts) == 401 and {"日", "🙂", "é"} <= set(texts)


@pytest.mark.parametrize("text", ["a\u2028b", "\u2029", "日\x85", "\x1e\x0b\x0c\r\n", "日 🙂", "a"])
def test_no_reader_splits_a_chunk(text: str) -> None:
    data = encode_json({"content": text})
    assert json.loads(data) == {"content": text} and len(data.decode().splitlines()) == 1


class Connection:
    """The ASGI side of a client that stays."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def failing(events: int, error: Exception) -> AsyncIterator[bytes]:
    for _ in range(events):
        yield b"data: {}\n\n"
    raise error


def test_failures_before_and_after_the_first_event() -> None:
    cancelled: list[bool] = []

    async def respond(events: int, error: Exception) -> list[dict[str, Any]]:
        connection = Connection()
        stream = sse.EventStream(failing(events, error), lambda: cancelled.append(True))
        await stream({"type": "http"}, connection.receive, connection.send)
        return connection.sent

    with pytest.raises(EngineFailedError):
        asyncio.run(respond(0, EngineFailedError("x")))
    sent = asyncio.run(respond(1, EngineFailedError("x")))
    assert sent[0]["status"] == 200
    assert b'"code":"engine_failed"' in sent[2]["body"] and sent[3] == {
        "type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False,
    }  # fmt: skip
    sent = asyncio.run(respond(1, RuntimeError("secret")))
    assert b"internal_error" in sent[2]["body"] and b"secret" not in sent[2]["body"]
    assert len(cancelled) == 3
