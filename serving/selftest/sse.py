"""Server-sent events: the framing of streams."""

from __future__ import annotations

import json

from flashlet.serving.selftest.rule import NotApplicableError, expect, rule, shown
from flashlet.serving.selftest.server import CHAT, Server

MANY_SCRIPTS = "é 日本語 🙂 👩‍🚀"
SILENCE = 11.0  # seconds: the ten of the rule, and one for the way


@rule
def content_type(server: Server) -> None:
    """A stream is text/event-stream."""
    found = server.hello_stream.content_type
    expect(found.startswith("text/event-stream"), f"content-type {found!r}")


@rule
def framing(server: Server) -> None:
    """An event is one line, `data: {json}` or a comment, and an empty line."""
    for stream in (server.hello_stream, server.completion_stream()):
        expect(stream.raw.endswith(b"\n\n"), f"the stream ends with {stream.raw[-20:]!r}")
        for event in stream.events:
            expect("\n" not in event and "\r" not in event, f"event of several lines: {shown(event)}")
            expect(event.startswith((":", "data: ")), f"neither data nor comment: {shown(event)}")
            if event.startswith("data: {"):
                json.loads(event.removeprefix("data: "))


@rule
def done(server: Server) -> None:
    """A stream ends with `data: [DONE]`, once."""
    for stream in (server.hello_stream, server.completion_stream()):
        expect(stream.raw.endswith(b"data: [DONE]\n\n"), f"the stream ends with {stream.raw[-40:]!r}")
        expect(stream.raw.count(b"data: [DONE]") == 1, "[DONE] came more than once")


@rule
def one_token_per_chunk(server: Server) -> None:
    """A chunk is one token: load generators count chunks."""
    stream = server.hello_stream
    chunks = [
        delta for delta in stream.deltas
        if delta.get("content") is not None and not (delta.get("role") and not delta["content"])
    ]  # fmt: skip
    tokens = stream.usages[-1]["completion_tokens"]
    # The token that ends an answer has no text.
    expect(len(chunks) in {tokens - 1, tokens}, f"{len(chunks)} chunks for {tokens} tokens")


@rule
def whole_characters(server: Server) -> None:
    """A chunk never splits a character."""
    schema = {
        "type": "object",
        "properties": {"text": {"type": "string", "enum": [MANY_SCRIPTS]}},
        "required": ["text"],
        "additionalProperties": False,
    }
    forced = {"type": "json_schema", "json_schema": {"name": "text", "strict": True, "schema": schema}}
    body = server.chat_body(max_tokens=200, response_format=forced)
    if server.post(CHAT, body).status_code != 200:
        raise NotApplicableError("no JSON schema makes the model write such characters here")
    stream = server.chat_stream(max_tokens=200, response_format=forced)
    for piece in stream.deltas:
        expect("\ufffd" not in (piece.get("content") or ""), f"a broken character in {shown(piece)}")
    expect(
        json.loads(stream.text)["text"] == MANY_SCRIPTS, f"expected {MANY_SCRIPTS!r}: {shown(stream.text)}"
    )


@rule
def same_as_plain(server: Server) -> None:
    """The pieces of a stream make the plain answer."""
    plain = server.hello["choices"][0]["message"]["content"]
    server.expect_same(server.hello_stream.text, plain, "chat")
    server.expect_same(server.completion_stream().text, server.complete()["choices"][0]["text"], "legacy")


@rule
def same_stop(server: Server) -> None:
    """A stop string cuts streamed and plain answers at the same place."""
    plain = server.hello["choices"][0]["message"]["content"]
    stop = plain[len(plain) // 2 :][:3]
    if not stop:
        raise NotApplicableError("the model's answer is too short to be cut")
    expected = plain[: plain.index(stop)]
    short = server.chat(stop=stop)["choices"][0]["message"]["content"]
    streamed = server.chat_stream(stop=stop)
    server.expect_same(short, expected, f"plain, stop {stop!r}")
    server.expect_same(streamed.text, expected, f"streamed, stop {stop!r}")
    expect(streamed.finish_reasons == ["stop"], f"finish_reason {streamed.finish_reasons}")


@rule
def no_error_in_chunks(server: Server) -> None:
    """Only an error carries a top-level `error`."""
    for stream in (server.hello_stream, server.completion_stream()):
        expect(not any("error" in chunk for chunk in stream.chunks), "a chunk has the field error")


@rule
def comments_in_silence(server: Server) -> None:
    """A comment breaks ten seconds of silence."""
    expect(server.longest_silence < SILENCE, f"a stream was silent for {server.longest_silence:.0f} s")
    if not server.comments:
        raise NotApplicableError(f"no stream had to wait: {server.longest_silence:.1f} s at most")
