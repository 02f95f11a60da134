"""Answers from a running server, over its HTTP interface."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from flashlet.serving.cli.answers import Message
from flashlet.serving.errors import RequestError

CONNECT_SECONDS = 5.0


class RemoteAnswers:
    """Chat completions of an OpenAI-compatible server at `url`, with or without /v1 at its end."""

    def __init__(self, url: str, api_key: str | None, parameters: dict[str, Any]) -> None:
        """`parameters` go into every request: model, temperature and so on."""
        base = url.rstrip("/").removesuffix("/v1")
        self._endpoint = f"{base}/v1/chat/completions"
        self._parameters = parameters
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # An answer may take as long as it needs: only connecting has a limit.
        self._client = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=CONNECT_SECONDS))

    def stream(self, messages: Sequence[Message]) -> Iterator[str]:
        """Yield the answer piece by piece.

        Raises:
            RequestError: the server cannot be reached, refuses, or fails on the way.
        """
        body = {**self._parameters, "messages": messages, "stream": True}
        try:
            with self._client.stream("POST", self._endpoint, json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise RequestError(_error_message(response.read(), response.status_code))
                yield from _content(response.iter_lines())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RequestError(f"{self._endpoint}: {error or type(error).__name__}") from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _content(lines: Iterator[str]) -> Iterator[str]:
    """Text of the chunks in a stream of server-sent events."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        chunk = json.loads(data)
        if "error" in chunk:
            raise RequestError(f"the server ended the answer: {chunk['error'].get('message')}")
        for choice in chunk["choices"]:
            yield choice["delta"].get("content") or ""
    raise RequestError("the server closed the connection before the answer was complete")


def _error_message(body: bytes, status: int) -> str:
    try:
        return f"the server answered {status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"the server answered {status}"
