"""Malformed and hostile requests: the right 4xx with the field's name, and the server still answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": [USER], "max_tokens": 2, **fields}


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"prompt": "hi", "max_tokens": 2, **fields}


def message(**fields: Any) -> tuple[str, dict[str, Any]]:
    return chat(messages=[USER, {**USER, **fields}])


BAD_FIELDS = [
    # wrong types: nothing is converted
    (chat(temperature="0.5"), "temperature"),
    (chat(temperature=True), "temperature"),
    (chat(max_tokens="5"), "max_tokens"),
    (chat(max_tokens=True), "max_tokens"),
    (chat(max_tokens=1.0), "max_tokens"),
    (chat(max_tokens=[]), "max_tokens"),
    (chat(stream="true"), "stream"),
    (chat(stream=1), "stream"),
    (chat(seed=0.5), "seed"),
    (chat(messages="hi"), "messages"),
    (chat(messages={"role": "user"}), "messages"),
    (chat(messages=[1]), "messages[0]"),
    (chat(logprobs=1), "logprobs"),
    (chat(logit_bias=[1]), "logit_bias"),
    (chat(stream_options=True, stream=True), "stream_options"),
    (chat(metadata="x"), "metadata"),
    (completion(prompt=5), "prompt"),
    (completion(prompt={"text": "hi"}), "prompt"),
    (completion(prompt=[1, "a"]), "prompt[1]"),
    (completion(prompt=["a", 1]), "prompt[1]"),
    (completion(prompt=[[1], ["a"]]), "prompt[1][0]"),
    (completion(prompt=[1, True]), "prompt[1]"),
    (completion(prompt=[1, None]), "prompt[1]"),
    (completion(prompt=[1.5]), "prompt"),
    (completion(logprobs=True), "logprobs"),
    (completion(stop=5), "stop"),
    (completion(stop=[5]), "stop[0]"),
    (completion(model=5), "model"),
    # out of range
    (chat(temperature=-0.1), "temperature"),
    (chat(temperature=2.1), "temperature"),
    (chat(top_p=0), "top_p"),
    (chat(top_p=1.1), "top_p"),
    (chat(top_k=-2), "top_k"),
    (chat(min_p=1.5), "min_p"),
    (chat(presence_penalty=3), "presence_penalty"),
    (chat(frequency_penalty=-3), "frequency_penalty"),
    (chat(repetition_penalty=0), "repetition_penalty"),
    (chat(max_tokens=0), "max_tokens"),
    (chat(max_tokens=-1), "max_tokens"),
    (chat(max_completion_tokens=10**30), "max_completion_tokens"),
    (chat(seed=2**63), "seed"),
    (chat(n=0), "n"),
    (chat(n=1000), "n"),
    (chat(min_tokens=3), "min_tokens"),
    (chat(top_logprobs=21, logprobs=True), "top_logprobs"),
    (chat(top_logprobs=1), "top_logprobs"),
    (chat(logit_bias={"5": 101}), "logit_bias.5"),
    (chat(logit_bias={"five": 1}), "logit_bias.five"),
    (chat(logit_bias={"-1": 1}), "logit_bias.-1"),
    (chat(logit_bias={"99999": 1}), "logit_bias"),
    (chat(stop=[str(i) for i in range(17)]), "stop"),
    (chat(stop_token_ids=[-1]), "stop_token_ids[0]"),
    (chat(stop_token_ids=[99999]), "stop_token_ids"),
    (chat(stream_options={"include_usage": True}), "stream_options"),
    (completion(prompt=[-1]), "prompt[0]"),
    (completion(prompt=[2**40]), "prompt[0]"),
    (completion(prompt=[99999]), "prompt"),
    (completion(prompt=["a"] * 600), "prompt"),
    (completion(n=128, prompt=["a"] * 100), "n"),
    (completion(best_of=3), "best_of"),
    (completion(max_tokens=100_000), "max_tokens"),
    # empty
    (chat(messages=[]), "messages"),
    (chat(stop=""), "stop"),
    (chat(stop=["a", ""]), "stop[1]"),
    (completion(prompt=[]), "prompt"),
    (completion(prompt=[[]]), "prompt[0]"),
    (completion(prompt=""), "prompt"),
    # missing, unknown, unsupported
    ((CHAT, {}), "messages"),
    ((COMPLETIONS, {"max_tokens": 1}), "prompt"),
    (chat(messages=[{"content": "hi"}]), "messages[0].role"),
    (chat(messages=[{"role": "user"}]), "messages[0].content"),
    (chat(temprature=1), "temprature"),
    (chat(stream=True, stream_options={"usage": True}), "stream_options.usage"),
    (chat(tools=[{"type": "function"}]), "tools[0].function"),
    (chat(tool_choice="auto"), "tool_choice"),
    (chat(response_format={"type": "xml"}), "response_format"),
    (chat(modalities=["audio"]), "modalities[0]"),
    (completion(suffix="x"), "suffix"),
    (message(role="robot"), "messages[1].role"),
    (message(content=None), "messages[1].content"),
    (message(content=[]), "messages[1].content"),
    (message(content=["hi"]), "messages[1].content[0]"),
    (message(content=[{"type": "image_url", "image_url": {"url": "x"}}]), "messages[1].content[0].type"),
    (message(content=[{"type": "text", "text": 5}]), "messages[1].content[0].text"),
    (message(weight=0.5), "messages[1].weight"),
    (chat(continue_final_message=True), "continue_final_message"),
    (chat(continue_final_message=True, add_generation_prompt=True), "continue_final_message"),
    (("/tokenize", {"prompt": 5}), "prompt"),
    (("/tokenize", {}), "prompt"),
    (("/detokenize", {"tokens": "hi"}), "tokens"),
    (("/detokenize", {"tokens": [99999]}), "tokens"),
]

BAD_BODIES = [
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"hello",
    b"{'prompt': 'hi'}",
    b'{"prompt": "hi"} {}',
    b'{"prompt": "hi", "temperature": NaN}',
    b'{"prompt": "hi", "temperature": Infinity}',
    b'{"prompt": "hi", "temperature": -Infinity}',
    b'{"prompt": "\xff\xfe"}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    b'{"metadata": {"a": [' + b"{}," * 200_000 + b"{}]}}",
    json.dumps({f"field{i}": 1 for i in range(2000)}).encode(),
]


def assert_error(response: httpx.Response, status: int, param: str | None) -> dict[str, Any]:
    """The error body of wire.md: exactly four fields, strings or null."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str) and isinstance(error["code"], str)
    assert error["param"] == param
    return error


def assert_answers(server: Server) -> None:
    response = server.post(COMPLETIONS, prompt="hi", max_tokens=1)
    assert response.status_code == 200 and response.json()["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("request_", "param"), BAD_FIELDS, ids=lambda value: str(value)[:80])
def test_bad_field(server: Server, request_: tuple[str, dict[str, Any]], param: str, stream: bool) -> None:
    path, body = request_
    if stream and ("stream" in body or "stream_options" in body or "tokenize" in path):
        pytest.skip("sets stream itself")
    response = server.client.post(path, json=body | ({"stream": True} if stream else {}))
    error = assert_error(response, 400, param)
    assert param.split(".", maxsplit=1)[0].split("[", maxsplit=1)[0] in error["message"]
    assert_answers(server)


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda value: repr(value[:40]))
def test_bad_body(server: Server, body: bytes) -> None:
    assert_error(server.client.post(COMPLETIONS, content=body), 400, None)
    assert_answers(server)


@pytest.mark.parametrize("literal", ["1e999", "-1e999", "1" * 5000])
def test_numbers_beyond_floats(server: Server, literal: str) -> None:
    body = f'{{"prompt": "hi", "temperature": {literal}}}'.encode()
    response = server.client.post(COMPLETIONS, content=body)
    assert response.status_code == 400 and response.json()["error"]["code"] in {
        "invalid_value",
        "invalid_json",
    }
    assert_answers(server)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "x" * 300])
def test_any_content_type(server: Server, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = server.client.post(COMPLETIONS, content=b'{"prompt": "hi"}', headers=headers)
    assert response.status_code == 200


def test_duplicate_keys_and_escapes(server: Server) -> None:
    body = b'{"prompt": "x", "prompt": "\\u65e5 \\ud83d\\ude42", "echo": true, "max_tokens": 0}'
    response = server.client.post(COMPLETIONS, content=body)
    assert response.json()["choices"][0]["text"] == "日 🙂"


def test_unknown_paths_methods_and_models(server: Server) -> None:
    assert_error(server.client.get("/v2/models"), 404, None)
    assert_error(server.client.post("/"), 404, None)
    refused = server.client.delete(CHAT)
    assert_error(refused, 405, None)
    assert refused.headers["allow"] == "POST"
    assert server.post("/v1/models").headers["allow"] == "GET"
    assert_error(server.post(CHAT, messages=[USER], model="gpt-5"), 404, "model")
    error = assert_error(server.client.get("/v1/models/" + "x" * 5000), 404, "model")
    assert error["code"] == "model_not_found" and "'toy'" in error["message"] and len(error["message"]) < 500


def test_too_long_prompt_is_never_truncated(server: Server) -> None:
    for body in ({"prompt": "a" * 600}, {"prompt": [5] * 600}, {"prompt": "a" * 200_000}):
        error = assert_error(server.post(COMPLETIONS, **body), 400, "prompt")
        assert error["code"] == "context_length_exceeded"
        assert "512" in error["message"] and ("600" in error["message"] or "at least" in error["message"])
    error = assert_error(server.post(CHAT, messages=[{**USER, "content": "a" * 600}]), 400, "messages")
    assert error["code"] == "context_length_exceeded"
    assert_error(server.post(CHAT, stream=True, messages=[{**USER, "content": "a" * 600}]), 400, "messages")


def test_body_over_the_limit(server: Server) -> None:
    """Announced or not, and the connection survives."""
    big = b'{"prompt": "' + b"a" * (10 << 20) + b'"}'

    def parts() -> Any:
        for start in range(0, len(big), 1 << 16):
            yield big[start : start + (1 << 16)]

    with httpx.Client(base_url=server.url) as client:
        assert_error(client.post(COMPLETIONS, content=big), 413, None)
        assert_error(client.post(COMPLETIONS, content=parts()), 413, None)
        assert client.get("/health").status_code == 200


def test_objects_with_too_many_fields(server: Server) -> None:
    """A list of errors as long as the body would hold up everyone else."""
    part = {"type": "text", "text": "x"} | {f"k{i}": 1 for i in range(2000)}
    error = assert_error(server.post(CHAT, messages=[{"role": "user", "content": [part]}]), 400, None)
    assert "1024" in error["message"] and "2002" in error["message"]


HALF_SENT = [
    b"",
    b"POST ",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-le",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n",
    b'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"prompt": "hi',
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{",
]


@pytest.mark.parametrize("data", HALF_SENT, ids=range(len(HALF_SENT)))
def test_half_sent_request(server: Server, data: bytes) -> None:
    """Others are served meanwhile, and the connection closes without harm."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(data)
        assert_answers(server)
    assert_answers(server)


def test_half_sent_requests_time_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashlet.serving.api.protocol.HEAD_TIMEOUT", 0.2)
    monkeypatch.setattr("flashlet.serving.api.body.BODY_TIMEOUT", 0.2)
    for data in HALF_SENT:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(data)
            answer = connection.recv(4096)
            assert answer.startswith(b"HTTP/1.1 408") if b"\r\n\r\n" in data else answer == b""


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # the start of TLS
        b"GET /health HTTP/1.1\r\nx: " + b"a" * 200_000,
        b"GET /" + b"a" * 200_000,
    ],
    ids=["text", "version", "tls", "endless header", "endless path"],
)
def test_not_http(server: Server, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(data)
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["code"] == "invalid_http"
    assert_answers(server)


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("chunked", [False, True])
def test_an_offer_to_upgrade_is_ignored(server: Server, protocol: str, chunked: bool) -> None:
    """Java's HttpClient offers h2c with each first request."""
    body = b'{"prompt": "hi", "max_tokens": 1}'
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": protocol, "http2-settings": "AAMAAABk"}
    with httpx.Client(base_url=server.url) as client:
        for _ in range(2):
            content = iter([body[:9], body[9:]]) if chunked else body
            response = client.post(COMPLETIONS, content=content, headers=headers)
            assert response.status_code == 200 and response.json()["usage"]["completion_tokens"] == 1
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_connect_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 400")
    assert_answers(server)


def test_a_full_queue_is_429_with_a_time(start_server: Callable[..., Server]) -> None:
    server = start_server(engine={"max_sequences": 1, "max_waiting": 2})
    server.executor.delay = 0.02
    busy_body = {"prompt": "a", "n": 3, "stream": True, "ignore_eos": True, "max_tokens": 500}
    with server.client.stream("POST", COMPLETIONS, json=busy_body) as busy:
        lines = busy.iter_lines()  # kept: dropping it closes the connection
        next(lines)
        response = server.post(COMPLETIONS, prompt="hi", stream=True)
    error = assert_error(response, 429, None)
    assert error["code"] == "queue_full"
    assert int(response.headers["retry-after"]) >= 1 and int(response.headers["retry-after-ms"]) >= 50
    assert response.headers["x-should-retry"] == "true"
    server.wait_idle()
    error = assert_error(server.post(COMPLETIONS, prompt="a", n=4), 400, "n")
    assert "3" in error["message"]


@pytest.mark.parametrize("n", [1, 3])
def test_failures_of_the_engine(start_server: Callable[..., Server], n: int) -> None:
    server = start_server()
    server.executor.failure = RuntimeError("boom")
    error = assert_error(server.post(COMPLETIONS, prompt="hi", stream=True, n=n), 500, None)
    assert error["type"] == "server_error" and "boom" not in error["message"]
    assert_answers(server)

    server.executor.delay = 0.02
    body = {"prompt": "hi", "stream": True, "max_tokens": 100, "ignore_eos": True, "n": n}
    with server.client.stream("POST", COMPLETIONS, json=body) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        server.executor.failure = RuntimeError("boom")
        events = [line.removeprefix("data: ") for line in lines if line]
    assert json.loads(events[-2])["error"]["code"] == "engine_failed" and events[-1] == "[DONE]"
    assert ["error" in event for event in events].count(True) == 1
    server.wait_idle()


def test_only_a_dead_engine_asks_not_to_retry(start_server: Callable[..., Server]) -> None:
    server = start_server()
    retries = []
    for _ in range(3):
        server.executor.failure = RuntimeError("boom")
        retries.append(server.post(COMPLETIONS, prompt="hi").headers["x-should-retry"])
    assert retries == ["true", "true", "false"]
    for response in (server.post(COMPLETIONS, prompt="hi"), server.client.get("/health")):
        assert assert_error(response, 500, None)["code"] == "engine_failed"
        assert response.headers["x-should-retry"] == "false" and "retry-after" not in response.headers


def test_while_loading_and_stopping(start_server: Callable[..., Server]) -> None:
    server = start_server(load=False)
    response = server.client.get("/health")
    assert assert_error(response, 503, None)["code"] == "model_loading"
    assert response.headers["retry-after"] == "1" and response.headers["x-should-retry"] == "true"
    assert_error(server.post(CHAT, messages=[USER]), 503, None)
    assert_error(server.post(CHAT, messages=[USER], model="other"), 404, "model")
    models = server.client.get("/v1/models").json()["data"]
    assert [(model["id"], model["max_model_len"]) for model in models] == [("toy", None), ("alias/toy", None)]
    assert server.client.get("/metrics").status_code == 200
    server.service.stopping = True
    assert assert_error(server.client.get("/health"), 503, None)["code"] == "shutting_down"
