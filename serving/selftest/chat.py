"""Chat completions, plain and in chunks."""

from __future__ import annotations

import json

from flashlet.serving.selftest.rule import expect, rule, shown
from flashlet.serving.selftest.server import HELLO, Server

FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter"}


@rule
def same_id(server: Server) -> None:
    """All chunks of a stream have the same id and created."""
    chunks = server.hello_stream.chunks
    for name in ("id", "created", "model"):
        expect(len({chunk[name] for chunk in chunks}) == 1, f"{name} changes")
    expect({chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}, shown(chunks[0]["object"]))


@rule
def role_once(server: Server) -> None:
    """Role comes once, in the first chunk: openai-python concatenates repeated strings."""
    deltas = server.hello_stream.deltas
    expect(deltas[0].get("role") == "assistant", f"first delta: {shown(deltas[0])}")
    expect(sum(delta.get("role") is not None for delta in deltas) == 1, "role came again")


@rule
def no_numbers_in_deltas(server: Server) -> None:
    """No number stands inside a delta: openai-python adds them up."""
    for delta in server.hello_stream.deltas:
        numbers = [name for name, value in delta.items() if isinstance(value, (int, float))]
        expect(not numbers, f"{numbers} in {shown(delta)}")


@rule
def last_chunk(server: Server) -> None:
    """The last chunk of an answer has delta {} and the finish reason."""
    last = server.hello_stream.choices[-1]
    expect(last["delta"] == {}, f"delta {shown(last['delta'])}")
    expect(last["finish_reason"] in FINISH_REASONS, f"finish_reason {last['finish_reason']!r}")
    expect(
        len(server.hello_stream.finish_reasons) == 1, f"finish reasons {server.hello_stream.finish_reasons}"
    )


@rule
def same_finish_reason(server: Server) -> None:
    """Plain and streamed answers end for the same reason."""
    for max_tokens in (2, 200):
        plain = server.chat(max_tokens=max_tokens, stop="five")["choices"][0]["finish_reason"]
        streamed = server.chat_stream(max_tokens=max_tokens, stop="five").finish_reasons
        expect(streamed == [plain], f"{streamed} is not {plain!r} with max_tokens {max_tokens}")
        expect(plain in FINISH_REASONS, f"finish_reason {plain!r}")


@rule
def include_usage(server: Server) -> None:
    """include_usage: one more chunk at the end, with `choices: []` and usage, and none before."""
    stream = server.hello_stream
    last = stream.chunks[-1]
    expect(last["choices"] == [], f"choices of the last chunk: {shown(last['choices'])}")
    expect(isinstance(last.get("usage"), dict), "the last chunk has no usage")
    expect(len(stream.usages) == 1, f"{len(stream.usages)} chunks with usage")


@rule
def continuous_usage(server: Server) -> None:
    """continuous_usage_stats: usage on every chunk, growing."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = server.chat_stream(stream_options=options)
    expect(len(stream.usages) == len(stream.chunks), f"usage on {len(stream.usages)} of {len(stream.chunks)}")
    counts = [usage["completion_tokens"] for usage in stream.usages]
    expect(counts == sorted(counts) and counts[-1] > counts[0], f"completion_tokens {shown(counts)}")


@rule
def max_tokens(server: Server) -> None:
    """max_tokens and max_completion_tokens both limit the answer, and the reason is `length`."""
    for name in ("max_tokens", "max_completion_tokens"):
        answer = server.chat(**{"max_tokens": None, name: 3})
        count = answer["usage"]["completion_tokens"]
        expect(count == 3, f"{count} tokens with {name} 3")
        reason = answer["choices"][0]["finish_reason"]
        expect(reason == "length", f"finish_reason {reason!r} with {name} 3")


@rule
def stop_forms(server: Server) -> None:
    """stop is a string or a list of strings."""
    text = server.hello["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:2]
    answers = [
        server.chat(stop=form)["choices"][0]["message"]["content"] for form in (stop, [stop, "no such text"])
    ]
    server.expect_same(answers[0], answers[1], "a string and a list")
    expect(stop not in answers[0], f"{shown(answers[0])} contains {stop!r}")


@rule
def content_forms(server: Server) -> None:
    """Content is a string or a list of text parts."""
    parts = [{"role": "user", "content": [{"type": "text", "text": HELLO[0]["content"]}]}]
    text, expected = (
        body["choices"][0]["message"]["content"] for body in (server.chat(messages=parts), server.hello)
    )
    server.expect_same(text, expected, "as parts")


@rule
def roles(server: Server) -> None:
    """The roles system, developer, assistant and tool are known."""
    call = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    asked = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]
    for messages in (
        [{"role": "system", "content": "Be brief."}, *HELLO],
        [{"role": "developer", "content": "Be brief."}, *HELLO],
        [*HELLO, {"role": "assistant", "content": "Hello."}, *HELLO],
        [*asked, {"role": "tool", "tool_call_id": "call_1", "content": "12:00"}],
    ):
        server.chat(messages=messages, max_tokens=1)


@rule
def choices(server: Server) -> None:
    """N answers come with indexes 0 to n - 1, plain and streamed."""
    plain = [choice["index"] for choice in server.chat(n=2, max_tokens=4)["choices"]]
    streamed = server.chat_stream(n=2, max_tokens=4).choices
    expect(plain == [0, 1], f"plain: {plain}")
    expect({choice["index"] for choice in streamed} == {0, 1}, "streamed: another set of indexes")


@rule
def json_schema(server: Server) -> None:
    """response_format json_schema: the answer is JSON of that schema."""
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}, "count": {"type": "integer"}},
        "required": ["size", "count"],
        "additionalProperties": False,
    }
    forced = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    choice = server.chat(response_format=forced, max_tokens=100)["choices"][0]
    if choice["finish_reason"] == "length":
        return  # a number may have any length: what there is so far cannot be checked
    value = json.loads(choice["message"]["content"])
    expect(set(value) == {"size", "count"} and value["size"] in {"small", "large"}, f"got {shown(value)}")
    expect(type(value["count"]) is int, f"count is {value['count']!r}")
