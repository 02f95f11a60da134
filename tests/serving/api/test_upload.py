"""Multipart uploads: limits that hold whatever the client announces."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request

from flashlet.serving.api import upload
from flashlet.serving.api.errors import BodyTimeoutError, BodyTooLargeError
from flashlet.serving.errors import InvalidRequestError

FORM = b'--x\r\ncontent-disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
PURPOSE = FORM % (b"purpose", b"", b"batch")
FILE = b'; filename="a.jsonl"'


def read(parts: list[bytes], max_bytes: int, ends: bool = True) -> tuple[bytes, str, int | None]:
    """What `read_upload` makes of a body that comes in `parts`, and then `ends` or stalls."""
    messages = iter([{"type": "http.request", "body": part, "more_body": True} for part in parts])

    async def receive() -> dict[str, object]:
        message: dict[str, object] | None = next(messages, None)
        if message is None and not ends:
            await asyncio.sleep(60)
        return message or {"type": "http.request", "body": b"", "more_body": False}

    async def run() -> tuple[bytes, str, int | None]:
        headers = [(b"content-type", b"multipart/form-data; boundary=x")]
        request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
        result = await upload.read_upload(request, max_bytes)
        data = await result.file.read()
        await result.file.close()
        return data, result.purpose, result.seconds

    return asyncio.run(run())


def test_a_file_in_parts() -> None:
    body = PURPOSE + FORM % (b"file", FILE, b"0123456789") + b"--x--\r\n"
    assert read([body[i : i + 7] for i in range(0, len(body), 7)], 10) == (b"0123456789", "batch", None)


def test_the_file_is_limited_and_so_is_the_body() -> None:
    with pytest.raises(BodyTooLargeError, match="at most 9 bytes, got 10"):
        read([PURPOSE + FORM % (b"file", FILE, b"0123456789") + b"--x--\r\n"], 9)
    endless = [PURPOSE, b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n']
    with pytest.raises(BodyTooLargeError):
        read([*endless, *[b"x" * 10_000] * 100], 1000)


def test_one_file_and_few_fields() -> None:
    part = FORM % (b"file", FILE, b"x")
    for parts in ([PURPOSE, part, part], [PURPOSE] * 9):
        with pytest.raises(InvalidRequestError, match="Too many"):
            read([*parts, b"--x--\r\n"], 1000)


def test_a_client_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "BODY_TIMEOUT", 0.05)
    with pytest.raises(BodyTimeoutError):
        read([PURPOSE], 1000, ends=False)
