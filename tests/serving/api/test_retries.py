"""Retries meet their original, streams are taken up again, repeats come from the cache."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from openai import OpenAI

from flashlet.serving.api import answering

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODY = {"prompt": "the user", "max_tokens": 30, "ignore_eos": True}
RESUMABLE = BODY | {"stream": True, "stream_options": {"resumable": True, "include_usage": True}}
RETRY = {"x-stainless-retry-count": "1"}
KEYS = ("one", "two")
BRIEF = 0.2


@pytest.fixture(scope="module")
def patient(start_server: Callable[..., Server]) -> Server:
    return start_server(api_keys=KEYS, retry_grace=600, resume_seconds=600, answer_cache_bytes=100_000)


@pytest.fixture(scope="module")
def impatient(start_server: Callable[..., Server]) -> Server:
    return start_server(api_keys=KEYS, retry_grace=BRIEF, resume_seconds=BRIEF)


def ready(server: Server) -> Server:
    server.executor.delay = 0.0
    server.executor.script = None
    server.client.headers["authorization"] = "Bearer one"
    server.wait_idle()
    return server


@pytest.fixture
def server(patient: Server) -> Server:
    return ready(patient)


@pytest.fixture
def brief(impatient: Server) -> Server:
    return ready(impatient)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def running(server: Server) -> int:
    assert server.service.model is not None
    return server.service.model.engine_loop.stats().running


def both(
    server: Server, first: dict[str, str], second: dict[str, str], body: dict[str, Any] | None = None
) -> list[httpx.Response]:
    """Answers to a request and to its repetition while the first runs."""
    server.executor.delay = 0.04
    body = body or BODY
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(server.client.post, COMPLETIONS, json=body, headers=first)]
        wait_until(lambda: running(server) == 1)
        answers.append(pool.submit(server.client.post, COMPLETIONS, json=body, headers=second))
        return [answer.result() for answer in answers]


def encoded(**further: Any) -> bytes:
    return json.dumps(BODY | {"max_tokens": 300} | further).encode()


def leave(server: Server, headers: dict[str, str], **further: Any) -> None:
    """Send a request and go when it runs."""
    data = encoded(**further)
    lines = [f"POST {COMPLETIONS} HTTP/1.1", "host: x", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in ({"authorization": "Bearer one"} | headers).items()]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        wait_until(lambda: running(server) == 1)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("first", "second"),
    [({"Idempotency-Key": ""}, {"Idempotency-Key": ""}), ({"x-stainless-retry-count": "0"}, RETRY)],
)
def test_a_retry_gets_the_answer_of_its_original(
    server: Server, first: dict[str, str], second: dict[str, str], stream: bool
) -> None:
    metrics = server.service.metrics
    joined, finished = metrics.joined_requests, metrics.finished["length"]
    body = BODY | {"stream": stream, "user": f"{first}"}  # so that no other test's answer is met
    first, second = (
        {name: value or f"key {stream}" for name, value in each.items()} for each in (first, second)
    )
    original, retry = both(server, first | {"x-request-id": "a"}, second | {"x-request-id": "b"}, body)
    assert original.status_code == retry.status_code == 200
    assert retry.content == original.content and len(original.content) > 100
    assert retry.headers["x-flashlet-seed"] == original.headers["x-flashlet-seed"]
    assert [retry.headers["x-request-id"], original.headers["x-request-id"]] == ["b", "a"]
    server.wait_idle()
    assert (metrics.joined_requests, metrics.finished["length"]) == (joined + 1, finished + 1)
    assert f"flashlet:joined_requests_total {joined + 1}.0" in server.client.get("/metrics").text


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "0"}),
        ({"Idempotency-Key": "a"}, {"Idempotency-Key": "b"}),
        ({"Idempotency-Key": "c"}, {"Idempotency-Key": "c", "authorization": "Bearer two"}),
        ({"x-stainless-retry-count": "0"}, RETRY | {"authorization": "Bearer two"}),
    ],
)
def test_separate_requests_stay_separate(
    server: Server, first: dict[str, str], second: dict[str, str]
) -> None:
    joined = server.service.metrics.joined_requests
    answers = [answer.json() for answer in both(server, first, second)]
    assert answers[0]["id"] != answers[1]["id"]
    assert server.service.metrics.joined_requests == joined


def test_a_key_belongs_to_one_request(server: Server) -> None:
    key = {"Idempotency-Key": "mine"}
    server.executor.delay = 0.02
    with server.client.stream("POST", COMPLETIONS, json=BODY | {"stream": True}, headers=key) as response:
        next(response.iter_raw())
        other = server.client.post(COMPLETIONS, json=BODY | {"max_tokens": 29}, headers=key)
        elsewhere = server.client.post(CHAT, json=BODY, headers=key)
        for refused in (other, elsewhere):
            assert refused.status_code == 400 and refused.json()["error"]["code"] == "idempotency_mismatch"
    refused = server.client.post(COMPLETIONS, json=BODY, headers={"Idempotency-Key": "x" * 256})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "Idempotency-Key"


def test_a_failure_reaches_both(server: Server) -> None:
    server.executor.delay = 0.1
    joined = server.service.metrics.joined_requests
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(server.client.post, COMPLETIONS, json=BODY)]
        wait_until(lambda: running(server) == 1)
        answers.append(pool.submit(server.client.post, COMPLETIONS, json=BODY, headers=RETRY))
        wait_until(lambda: server.service.metrics.joined_requests == joined + 1)
        server.executor.failure = ArithmeticError("x")
        for answer in answers:
            assert answer.result().json()["error"]["code"] == "engine_failed"
    assert server.post(COMPLETIONS, **BODY).status_code == 200


def test_without_a_key_nothing_runs_for_nobody(server: Server) -> None:
    server.executor.delay = 0.01
    for stream in (False, True):
        leave(server, {}, stream=stream)
        assert server.service.model is not None
        steps = server.service.model.engine_loop.stats().steps
        server.wait_idle()
        assert server.service.model.engine_loop.stats().steps - steps < 200  # of 300
    assert not server.service.answering._running


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_waits_for_the_retry(server: Server, stream: bool) -> None:
    server.executor.delay = 0.005
    key = {"Idempotency-Key": f"back {stream}"}
    finished = server.service.metrics.finished["length"]
    leave(server, key, stream=stream, max_tokens=40)
    time.sleep(0.05)
    body = encoded(stream=stream, max_tokens=40)
    answer = server.client.post(COMPLETIONS, content=body, headers=key)
    # An ended answer stays for a moment, too: the client may have missed its last bytes.
    again = server.client.post(COMPLETIONS, content=body, headers=key)
    assert answer.status_code == 200 and answer.content == again.content
    assert server.service.metrics.finished["length"] == finished + 1


def test_an_answer_does_not_wait_for_ever(brief: Server) -> None:
    brief.executor.delay = 0.02
    aborted = brief.service.metrics.finished["abort"]
    started = time.monotonic()
    leave(brief, {"Idempotency-Key": "gone"}, stream=True)
    brief.wait_idle()
    assert time.monotonic() - started >= BRIEF
    wait_until(lambda: brief.service.metrics.finished["abort"] == aborted + 1)
    assert not brief.service.answering._by_key and not brief.service.answering._running


def test_an_ended_answer_is_forgotten(brief: Server) -> None:
    key = {"Idempotency-Key": "once"}
    for body in (BODY, RESUMABLE):
        first = brief.client.post(COMPLETIONS, json=body, headers=key)
        wait_until(lambda: not brief.service.answering._kept)
        books = brief.service.answering
        assert (books._kept_bytes, books._by_key, books._streams, books._running) == (0, {}, {}, {})
        second = brief.client.post(COMPLETIONS, json=body, headers=key)
        assert second.status_code == 200 and second.content != first.content
        wait_until(lambda: not brief.service.answering._kept)


def test_openai_retries_meet_the_original(server: Server) -> None:
    """The SDK gives up waiting, and its own retry with a key finishes the request once."""

    def hurry(request: httpx.Request) -> None:
        is_first = request.headers["x-stainless-retry-count"] == "0"
        request.extensions["timeout"] = {"read": 0.3 if is_first else 60.0}

    server.executor.delay = 0.01
    finished = server.service.metrics.finished.total()
    http_client = httpx.Client(event_hooks={"request": [hurry]})
    client = OpenAI(base_url=server.url + "/v1", api_key="one", http_client=http_client)
    answer = client.completions.create(
        model="toy", prompt="the user", max_tokens=80, extra_body={"ignore_eos": True},
        extra_headers={"Idempotency-Key": "sdk"},
    )  # fmt: skip
    assert answer.usage is not None and answer.usage.completion_tokens == 80
    assert server.service.metrics.finished.total() == finished + 1
    client.close()


def events_of(text: str) -> list[str]:
    return [event for event in text.split("\n\n") if event and not event.startswith(":")]


def cut(server: Server, num_events: int, body: dict[str, Any]) -> tuple[str, list[str]]:
    """Read some events of a stream, then drop the connection; returns the id, too."""
    events: list[str] = []
    with server.client.stream("POST", COMPLETIONS, json=body) as response:
        text = response.iter_text()
        while len(events) < num_events:
            events += events_of(next(text))
    return json.loads(events[0].partition("data: ")[2])["id"], events[:num_events]


def test_a_cut_stream_is_taken_up_again(server: Server) -> None:
    server.executor.delay = 0.01
    resumed, finished = server.service.metrics.resumed_streams, server.service.metrics.finished["length"]
    stream_id, before = cut(server, 7, RESUMABLE)
    assert before[6].startswith("id: 7\ndata: ")
    path = f"/v1/streams/{stream_id}"
    rest = events_of(server.client.get(path, headers={"Last-Event-ID": "7"}).text)
    assert len(before + rest) == 33 and rest[-1] == "data: [DONE]"  # 30 tokens, end, usage, [DONE]
    numbers = [int(event.split("\n")[0].removeprefix("id: ")) for event in (before + rest)[:-1]]
    assert numbers == [*range(1, 33)]
    assert events_of(server.client.get(path).text) == before + rest
    assert events_of(server.client.get(path, headers={"Last-Event-ID": "32"}).text) == ["data: [DONE]"]
    assert server.client.get(path, headers={"Last-Event-ID": "33"}).status_code == 404
    assert server.client.get(path, headers={"Last-Event-ID": "-1"}).status_code == 400
    assert server.client.get(path, headers={"authorization": "Bearer two"}).status_code == 404
    assert server.client.get("/v1/streams/nothing").status_code == 404
    assert server.service.metrics.finished["length"] == finished + 1
    assert server.service.metrics.resumed_streams == resumed + 3


def test_a_stream_that_nobody_takes_up_ends(brief: Server) -> None:
    brief.executor.delay = 0.02
    stream_id, _ = cut(brief, 3, RESUMABLE | {"max_tokens": 400})
    brief.wait_idle()
    wait_until(lambda: not brief.service.answering._running)
    assert brief.client.get(f"/v1/streams/{stream_id}").status_code == 404
    assert not brief.service.answering._streams


def test_streams_without_the_option_cannot_be_resumed(server: Server) -> None:
    first = server.stream(COMPLETIONS, **BODY)[0]
    assert first.startswith('{"id":"cmpl-')
    assert server.client.get(f"/v1/streams/{json.loads(first)['id']}").status_code == 404


def test_kept_answers_are_bounded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "MAX_KEPT_BYTES", 10_000)
    ids = [cut(server, 30, RESUMABLE)[0] for _ in range(3)]  # about 7 kB each
    server.wait_idle()
    wait_until(lambda: not server.service.answering._running)
    statuses = [server.client.get(f"/v1/streams/{stream_id}").status_code for stream_id in ids]
    assert statuses == [404, 404, 200]
    assert 0 < server.service.answering._kept_bytes <= 10_000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [{"temperature": 0}, {"seed": 3}])
def test_repeats_come_from_the_cache(server: Server, choice: dict[str, Any], stream: bool) -> None:
    body = BODY | choice | {"stream": stream, "max_tokens": 12, "prompt": f"{choice} {stream}"}
    if stream:
        body["stream_options"] = {"include_usage": True}
    hits = server.service.metrics.answer_cache_hits
    first, second = (server.client.post(COMPLETIONS, json=body) for _ in range(2))
    assert "x-flashlet-cache" not in first.headers and second.headers["x-flashlet-cache"] == "hit"
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-flashlet-seed"] == first.headers["x-flashlet-seed"]
    assert second.text.replace('"cached_answer":true,', "") == first.text
    assert second.text.count('"cached_answer":true') == 1
    assert server.service.metrics.answer_cache_hits == hits + 1
    other_key = server.client.post(COMPLETIONS, json=body, headers={"authorization": "Bearer two"})
    assert "x-flashlet-cache" not in other_key.headers


def test_openai_accumulates_a_stream_from_the_cache(server: Server) -> None:
    server.executor.script = "Twice, it said."
    client = OpenAI(base_url=server.url + "/v1", api_key="one")
    for cached in (None, True):
        with client.chat.completions.stream(
            model="toy", messages=[{"role": "user", "content": "say it twice"}], temperature=0,
            stream_options={"include_usage": True},
        ) as stream:  # fmt: skip
            completion = stream.get_final_completion()
        assert completion.usage is not None and completion.usage.model_dump().get("cached_answer") is cached
        assert completion.usage.total_tokens == (
            completion.usage.prompt_tokens + completion.usage.completion_tokens
        )


def test_only_the_usage_of_a_cached_answer_is_marked(server: Server) -> None:
    call = '{"name": "watch", "arguments": {"usage": {"of": "cpu"}}}'
    server.executor.script = f"<tool_call>\n{call}\n</tool_call>"
    schema = {"type": "object", "properties": {"usage": {"type": "object"}}}
    body = {
        "messages": [{"role": "user", "content": "watch"}],
        "tools": [{"name": "watch", "input_schema": schema}],
        "max_tokens": 100, "temperature": 0,
    }  # fmt: skip
    first, second = (server.client.post("/v1/messages", json=body) for _ in range(2))
    assert second.headers["x-flashlet-cache"] == "hit" and second.json()["usage"].pop("cached_answer")
    assert second.json()["content"] == first.json()["content"]
    assert second.json()["content"][0]["input"] == {"usage": {"of": "cpu"}}


def test_what_is_not_cached(server: Server) -> None:
    for body in (
        BODY | {"prompt": "sampled"},
        BODY | {"prompt": "resumable", "seed": 1, "stream": True, "stream_options": {"resumable": True}},
        BODY | {"prompt": "refused", "temperature": 0, "max_tokens": 10_000},
        BODY | {"prompt": "large", "temperature": 0, "max_tokens": 400, "logprobs": 20},
    ):
        for _ in range(2):
            assert "x-flashlet-cache" not in server.client.post(COMPLETIONS, json=body).headers


def test_the_cache_is_bounded_and_drops_what_was_not_used(server: Server) -> None:
    def cached(number: int) -> bool:
        body = BODY | {"prompt": f"n{number}", "temperature": 0, "stream": True}
        return "x-flashlet-cache" in server.client.post(COMPLETIONS, json=body).headers

    assert not cached(0)
    for number in range(1, 30):  # about 13 kB each
        assert not cached(number)
        assert cached(0)
        assert server.service.answering._cache.num_bytes <= 100_000
    assert not cached(1)
