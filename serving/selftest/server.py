"""The server under test: requests as clients send them, and what several rules need to know about it."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any
from urllib.parse import quote

import httpx

from flashlet.serving.selftest.rule import NotApplicableError, RuleBrokenError, shown
from flashlet.serving.selftest.stream import Stream

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "Say hello, then count from one to five."}]
GREEDY = {"temperature": 0, "seed": 1234}
TIMEOUT = 120.0  # seconds for any one answer
NOT_THERE = {404, 405, 501}  # how servers answer on endpoints that they do not have


class Server:
    """An OpenAI-compatible server at `url`, with or without /v1 at its end."""

    def __init__(
        self, url: str, api_key: str | None = None, model: str | None = None, loading: Loading | None = None
    ) -> None:
        """`loading` is what was seen while the server loaded its model, if it was."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.api_key = api_key
        self.loading = loading
        self.longest_silence = 0.0  # seconds without a byte, in any stream so far
        self.comments = 0  # in all streams so far
        self._model = model
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @cached_property
    def model(self) -> str:
        """The name that requests use: the chosen one, or the first that is served."""
        return self._model or str(self.models[0]["id"])

    @cached_property
    def models(self) -> list[dict[str, Any]]:
        """The items of /v1/models."""
        return list(self.get("/v1/models").raise_for_status().json()["data"])

    @cached_property
    def context_length(self) -> int | None:
        """The model's limit in tokens, if /v1/models tells it."""
        length = next((item.get("max_model_len") for item in self.models if item["id"] == self.model), None)
        return length if isinstance(length, int) else None

    @property
    def headers(self) -> dict[str, str]:
        """The key, if there is one."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        """GET, with the key unless other headers are given."""
        return self._client.get(quote(path, safe="/%"), headers=self.headers if headers is None else headers)

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        """POST JSON, with the key unless other headers are given; bytes are sent as they are."""
        headers = {"content-type": "application/json", **(self.headers if headers is None else headers)}
        if isinstance(body, bytes):
            return self._client.post(path, content=body, headers=headers)
        return self._client.post(path, json=body, headers=headers)

    def chat_body(self, **fields: Any) -> dict[str, Any]:
        """A chat request: greedy, 24 tokens at most, unless `fields` say otherwise."""
        return {"model": self.model, "messages": HELLO, "max_tokens": 24, **GREEDY, **fields}

    def completion_body(self, **fields: Any) -> dict[str, Any]:
        """A legacy request: greedy, 8 tokens at most, unless `fields` say otherwise."""
        return {
            "model": self.model,
            "prompt": "The capital of France is",
            "max_tokens": 8,
            **GREEDY,
            **fields,
        }

    def chat(self, **fields: Any) -> dict[str, Any]:
        """A plain chat answer."""
        return answer(self.post(CHAT, self.chat_body(**fields)))

    def complete(self, **fields: Any) -> dict[str, Any]:
        """A plain legacy completion."""
        return answer(self.post(COMPLETIONS, self.completion_body(**fields)))

    def chat_stream(self, **fields: Any) -> Stream:
        """A streamed chat answer."""
        return self.stream(CHAT, self.chat_body(stream=True, **fields))

    def completion_stream(self, **fields: Any) -> Stream:
        """A streamed legacy completion."""
        return self.stream(COMPLETIONS, self.completion_body(stream=True, **fields))

    def stream(self, path: str, body: dict[str, Any]) -> Stream:
        """Read a stream to its end, minding how long it is silent."""
        with self._client.stream("POST", path, json=body, headers=self.headers) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                answer(response)
            raw, last = b"", time.monotonic()
            for data in response.iter_bytes():
                self.longest_silence = max(self.longest_silence, time.monotonic() - last)
                raw, last = raw + data, time.monotonic()
            stream = Stream(response.headers.get("content-type", ""), raw)
            if not stream.chunks:
                raise RuleBrokenError(f"a stream without chunks: {shown(raw)}")
            self.comments += sum(event.startswith(":") for event in stream.events)
            return stream

    @cached_property
    def hello(self) -> dict[str, Any]:
        """A plain answer that several rules look at."""
        return self.chat()

    @cached_property
    def hello_stream(self) -> Stream:
        """The same answer streamed, with its usage."""
        return self.chat_stream(stream_options={"include_usage": True})

    def expect_same(self, text: str, expected: str, what: str) -> None:
        """Compare two greedy answers, unless the server's greedy answers differ by themselves."""
        if text == expected:
            return
        if not self.repeatable:
            raise NotApplicableError("the same greedy request gets different answers here")
        raise RuleBrokenError(f"{what}: {shown(text)} is not {shown(expected)}")

    @cached_property
    def repeatable(self) -> bool:
        """Whether one greedy request gets one answer: each of the two forms, asked for again, is the same."""
        answers = [self.hello, *(self.chat() for _ in range(3))]
        streams = [self.hello_stream, *(self.chat_stream() for _ in range(3))]
        one_answer = len({body["choices"][0]["message"]["content"] for body in answers}) == 1
        return one_answer and len({stream.text for stream in streams}) == 1

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """Token ids of `text`; raises NotApplicableError if the server has no /tokenize."""
        ours = {"model": self.model, "prompt": text, "add_special_tokens": special}
        for body in (ours, {"content": text, "add_special": special}):  # vLLM's names, then llama-server's
            response = self.post("/tokenize", body)
            if response.status_code == httpx.codes.OK and response.json().get("tokens"):
                return [int(token) for token in response.json()["tokens"]]
        raise NotApplicableError(f"token ids are needed, and /tokenize answers {response.status_code}")


class Loading:
    """What a server answered while it loaded its model."""

    def __init__(self, health: httpx.Response, chat: httpx.Response, models: httpx.Response) -> None:
        self.health = health
        self.chat = chat
        self.models = models


def answer(response: httpx.Response) -> dict[str, Any]:
    """The JSON of a 200; raises RuleBrokenError for any other status."""
    if response.status_code != httpx.codes.OK:
        raise RuleBrokenError(f"status {response.status_code}: {error_message(response)}")
    body = response.json()
    if not isinstance(body, dict):
        raise RuleBrokenError(f"expected an object, got {shown(body)}")
    return body


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The `error` object of an error answer; raises RuleBrokenError if there is none."""
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = None
    if not isinstance(error, dict):
        raise RuleBrokenError(
            f"status {response.status_code} without an error object: {shown(response.text)}"
        )
    return error


def error_message(response: httpx.Response) -> str:
    """The error's message, or the start of the body."""
    try:
        return shown(error_of(response).get("message"))
    except RuleBrokenError:
        return shown(response.text)
