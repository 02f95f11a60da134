"""POST /v1/estimate, and the time limits of requests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

CHAT, LEGACY = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "the user"}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO, "max_tokens": 8},
    LEGACY: {"prompt": "the user and the assistant", "max_tokens": 8},
    "/v1/responses": {"input": "the user", "max_output_tokens": 8, "store": False},
    "/v1/messages": {"messages": HELLO, "max_tokens": 8},
}


@pytest.fixture(scope="module")
def timed(start_server: Callable[..., Server]) -> Server:
    """A server of its own, which knows that steps take 10 ms."""
    server = start_server()
    server.executor.delay = 0.01
    server.post(LEGACY, prompt="a", max_tokens=30, ignore_eos=True)
    return server


def sequences_so_far(server: Server) -> float:
    """How many sequences have ended, whatever the reason."""
    text = server.client.get("/metrics").text
    return sum(map(float, re.findall(r"flashlet:request_success_total\{.*\} (\S+)", text)))


@pytest.mark.parametrize("endpoint", BODIES)
def test_every_dialect_can_be_estimated(timed: Server, endpoint: str) -> None:
    body = BODIES[endpoint]
    before = sequences_so_far(timed)
    response = timed.post("/v1/estimate", endpoint=endpoint, **body)
    assert response.status_code == 200, response.text
    estimate = response.json()
    assert (estimate["object"], estimate["queue_position"]) == ("estimate", 0)
    assert 1 <= estimate["output_tokens"] <= 8
    assert 5 < estimate["ttft_ms"] < estimate["total_ms"]
    assert sequences_so_far(timed) == before
    usage = timed.post(endpoint, **body).json()["usage"]
    num_prompt = usage.get("prompt_tokens") or usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)
    assert num_prompt == estimate["prompt_tokens"]


def test_cached_tokens_and_several_sequences(timed: Server) -> None:
    prompt = "talk about the weather in the city " * 3
    body = {"prompt": [prompt, "b"], "max_tokens": 4, "n": 2, "ignore_eos": True}
    cold = timed.post("/v1/estimate", endpoint=LEGACY, **body).json()
    usage = timed.post(LEGACY, **body).json()["usage"]
    warm = timed.post("/v1/estimate", endpoint=LEGACY, **body).json()
    assert cold["prompt_tokens"] == warm["prompt_tokens"] == usage["prompt_tokens"]
    assert cold["cached_tokens"] == 0 < warm["cached_tokens"] < usage["prompt_tokens"]
    assert cold["output_tokens"] == usage["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"prompt": "a"}, None, "invalid_type"),
        ({"endpoint": "/v1/embeddings", "input": "a"}, None, "invalid_type"),
        ({"endpoint": LEGACY, "prompt": "a", "max_tokens": -1}, "max_tokens", "invalid_value"),
        ({"endpoint": LEGACY, "prompt": "a", "nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"endpoint": CHAT, "messages": HELLO, "max_tokens": 9999}, "max_tokens", "context_length_exceeded"),
        ({"endpoint": CHAT, "messages": [{"role": "user", "content": "a" * 999}]}, "messages",
         "context_length_exceeded"),
        ({"endpoint": "/v1/messages", "messages": HELLO, "max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"endpoint": "/v1/responses", "input": "a", "max_output_tokens": 9999}, "max_output_tokens",
         "context_length_exceeded"),
    ],
)  # fmt: skip
def test_what_would_be_refused_is(timed: Server, body: dict[str, Any], param: str | None, code: str) -> None:
    response = timed.client.post("/v1/estimate", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == code, error
    assert param is None or error["param"] == param


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("limit", [{"deadline_ms": 50}, {"max_ttft_ms": 0.5}])
def test_a_limit_out_of_reach_is_refused_at_once(
    timed: Server, stream: bool, limit: dict[str, float]
) -> None:
    response = timed.post(LEGACY, prompt="the", max_tokens=400, ignore_eos=True, stream=stream, **limit)
    assert response.status_code == 503
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("deadline_unreachable", next(iter(limit)))
    assert response.headers["x-should-retry"] == "true"
    wait = int(response.headers["retry-after-ms"])
    assert wait >= 1 and int(response.headers["retry-after"]) >= wait / 1000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, LEGACY])
def test_an_answer_ends_at_its_deadline(timed: Server, path: str, stream: bool) -> None:
    body = BODIES[path] | {"max_tokens": 30, "ignore_eos": True, "deadline_ms": 2000}
    timed.executor.delay = 0.12  # nobody expects that
    try:
        if stream:
            chunks = [json.loads(data) for data in timed.stream(path, **body)[:-1]]
            choice, num_tokens = chunks[-1]["choices"][0], len(chunks) - 1
        else:
            answer = timed.post(path, **body).json()
            choice, num_tokens = answer["choices"][0], answer["usage"]["completion_tokens"]
    finally:
        timed.executor.delay = 0.01
        timed.post(LEGACY, prompt="a", max_tokens=60, ignore_eos=True)  # steps are short again
    assert choice["finish_reason"] == "length"
    assert 1 <= num_tokens < 30


@pytest.mark.parametrize("stream", [False, True])
def test_a_late_first_token_is_an_error(timed: Server, stream: bool) -> None:
    timed.executor.delay = 0.3
    response = timed.post(LEGACY, prompt="x", max_tokens=4, stream=stream, max_ttft_ms=100)
    timed.executor.delay = 0.01
    if response.status_code == 503:
        assert response.json()["error"]["code"] == "deadline_passed"
    else:  # the token came with the step in which the time ended
        assert response.status_code == 200
    timed.wait_idle()


def test_errors_of_estimates_are_counted(timed: Server) -> None:
    timed.post(LEGACY, prompt="a", max_tokens=4)
    text = timed.client.get("/metrics").text
    for of in ("ttft", "total"):
        count = re.search(rf'flashlet:estimate_error_ratio_count{{of="{of}"}} (\S+)', text)
        assert count is not None and float(count[1]) >= 1
