"""Tool calls, plain and streamed."""

from __future__ import annotations

import json
from typing import Any

from flashlet.serving.selftest.rule import expect, rule, shown
from flashlet.serving.selftest.server import Server
from flashlet.serving.selftest.stream import Stream

CITIES = ["Paris", "London"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": CITIES}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
MESSAGES = [{"role": "user", "content": "What is the weather in Paris? And in London? Ask for both at once."}]


@rule
def required(server: Server) -> None:
    """tool_choice `required`: tool_calls of {id, type, function: {name, arguments}}, and content null."""
    message = _forced(server)["message"]
    expect(message.get("content") is None, f"content {shown(message.get('content'))}")
    for call in _calls(message):
        expect(isinstance(call.get("id"), str) and call["id"], f"id {call.get('id')!r}")
        expect(call.get("type") == "function", f"type {call.get('type')!r}")
        expect(call["function"]["name"] == "get_weather", f"name {call['function']['name']!r}")


@rule
def arguments(server: Server) -> None:
    """Arguments are JSON text that fits the tool's schema when the call is forced."""
    for call in _calls(_forced(server)["message"]):
        _check_arguments(call["function"]["arguments"])


@rule
def named(server: Server) -> None:
    """tool_choice {"type": "function", "function": {"name"}} calls that tool."""
    other = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    choice = {"type": "function", "function": {"name": "get_weather"}}
    names = [
        call["function"]["name"]
        for call in _calls(_forced(server, tools=[other, WEATHER], tool_choice=choice)["message"])
    ]
    expect(set(names) == {"get_weather"}, f"called {names}")


@rule
def finish_reason(server: Server) -> None:
    """finish_reason is tool_calls, plain and streamed."""
    plain = _forced(server)["finish_reason"]
    expect(plain == "tool_calls", f"plain: {plain!r}")
    streamed = _stream(server).finish_reasons
    expect(streamed == ["tool_calls"], f"streamed: {streamed}")


@rule
def first_delta(server: Server) -> None:
    """A streamed call opens with {index, id, type, function: {name, arguments: ""}}."""
    for deltas in _streamed_calls(server).values():
        first = deltas[0]
        expect(set(first) == {"index", "id", "type", "function"}, f"first delta {shown(first)}")
        expect(first["type"] == "function" and first["id"], f"first delta {shown(first)}")
        expect(first["function"] == {"name": "get_weather", "arguments": ""}, shown(first["function"]))


@rule
def later_deltas(server: Server) -> None:
    """Later deltas carry index and arguments; id, type and name are absent."""
    for deltas in _streamed_calls(server).values():
        for delta in deltas[1:]:
            expect(set(delta) == {"index", "function"}, f"later delta {shown(delta)}")
            expect(set(delta["function"]) == {"arguments"}, f"later delta {shown(delta)}")


@rule
def streamed_arguments(server: Server) -> None:
    """Streamed arguments come in pieces and end as valid JSON."""
    for deltas in _streamed_calls(server).values():
        expect(len(deltas) > 1, "the call came in one delta")
        _check_arguments("".join(delta["function"].get("arguments") or "" for delta in deltas))


@rule
def distinct_calls(server: Server) -> None:
    """Each call has an index and an id of its own."""
    calls = _streamed_calls(server)
    ids = [deltas[0].get("id") for deltas in calls.values()]
    ids += [call["id"] for call in _calls(_forced(server)["message"])]
    expect(len(set(ids)) == len(ids), f"ids {ids}")
    expect(sorted(calls) == list(range(len(calls))), f"indexes {sorted(calls)}")


@rule
def one_call(server: Server) -> None:
    """parallel_tool_calls false: one call at most."""
    calls = _calls(_forced(server, parallel_tool_calls=False)["message"])
    expect(len(calls) == 1, f"{len(calls)} calls")


@rule
def none(server: Server) -> None:
    """tool_choice `none`: no call."""
    message = server.chat(messages=MESSAGES, tools=[WEATHER], tool_choice="none")["choices"][0]["message"]
    expect(not message.get("tool_calls"), f"calls {shown(message.get('tool_calls'))}")
    expect(isinstance(message["content"], str), "no content")


@rule
def auto(server: Server) -> None:
    """tool_choice `auto`: text or calls, and the finish reason tells which."""
    choice = server.chat(messages=MESSAGES, tools=[WEATHER], tool_choice="auto", max_tokens=100)["choices"][0]
    called = bool(choice["message"].get("tool_calls"))
    expect(called == (choice["finish_reason"] == "tool_calls"), f"finish_reason {choice['finish_reason']!r}")


@rule
def results(server: Server) -> None:
    """A call and its result continue the conversation."""
    message = _forced(server)["message"]
    outcomes = [{"role": "tool", "tool_call_id": call["id"], "content": "sunny"} for call in _calls(message)]
    server.chat(messages=[*MESSAGES, message, *outcomes], tools=[WEATHER], max_tokens=8)


def _forced(server: Server, **fields: Any) -> dict[str, Any]:
    """The choice of a plain answer that must be a call."""
    fields = {
        "messages": MESSAGES,
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_tokens": 200,
        **fields,
    }
    return dict(server.chat(**fields)["choices"][0])


def _stream(server: Server) -> Stream:
    fields = {"messages": MESSAGES, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 200}
    return server.chat_stream(**fields)


def _streamed_calls(server: Server) -> dict[int, list[dict[str, Any]]]:
    """The deltas of each call, by index."""
    calls: dict[int, list[dict[str, Any]]] = {}
    for delta in _stream(server).deltas:
        for call in delta.get("tool_calls") or ():
            calls.setdefault(call["index"], []).append(call)
    expect(calls, "no tool call in the stream")
    return calls


def _calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls")
    expect(calls, f"no tool call: {shown(message)}")
    return list(calls or ())


def _check_arguments(text: object) -> None:
    expect(isinstance(text, str), f"arguments are not text: {shown(text)}")
    try:
        value = json.loads(str(text))
    except ValueError:
        expect(False, f"arguments are not JSON: {shown(text)}")
    expect(isinstance(value, dict) and set(value) == {"city"}, f"arguments {shown(value)}")
    expect(value["city"] in CITIES, f"city {value['city']!r} is not in the schema")
