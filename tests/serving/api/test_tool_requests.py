"""Requests with tools: what the model is told, what is refused, and openai-python's loop."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import openai
import pytest
from weather_tools import CHAT, NOW, PARIS, TOOLS, USER, WEATHER_CHOICE, WEATHER_SCHEMA, call

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

QWEN_TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call: <tool_call>{\\"name\\": ..., \\"arguments\\": ...}</tool_call><|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for call in m.tool_calls or [] %}[{{ call.id }} {{ call.function.name }} \
{{ call.function.arguments | tojson }}]{% endfor %}
{%- if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MISTRAL_TEMPLATE = QWEN_TEMPLATE.replace("<tool_call>", "[TOOL_CALLS]")


@pytest.fixture(scope="module")
def shared_server(start_server: Callable[..., Server]) -> Server:
    return start_server(context_length=8192)


ROUND = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": PARIS}},
            {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
]


def prompt_of(server: Server, **body: Any) -> str:
    """The prompt that a request is turned into."""
    server.executor.script = "ok"
    response = server.post(CHAT, return_token_ids=True, **{"messages": ROUND, "tools": TOOLS, **body})
    assert response.status_code == 200, response.text
    ids = response.json()["prompt_token_ids"]
    text: str = server.post("/detokenize", tokens=ids).json()["prompt"]
    return text


def test_prompt_of_a_template_without_tools(server: Server) -> None:
    text = prompt_of(server, messages=[{"role": "developer", "content": "Be brief."}, *ROUND])
    system, example, rest = text.partition("<|im_start|>user\nGet the weather.<|im_end|>\n")
    assert system.startswith("<|im_start|>system\nBe brief.\n\n") and json.dumps(WEATHER_SCHEMA) in system
    assert example and rest.startswith(
        "<|im_start|>assistant\n" + call("get_weather", '{"city": "...", "days": 1}') + "<|im_end|>\n"
    )
    assert rest.endswith(
        "<|im_start|>user\nweather?<|im_end|>\n<|im_start|>assistant\n"
        + call("get_weather", PARIS) + "\n" + call("now", "{}")
        + "<|im_end|>\n<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n"
        "</tool_response>\nTell me the result in a sentence.<|im_end|>\n<|im_start|>assistant\n"
    )  # fmt: skip
    without = prompt_of(server, tools=None)
    assert without == rest[rest.index("<|im_start|>user\nweather?") :]


def test_prompt_of_templates_that_know_tools(start_server: Callable[..., Server]) -> None:
    text = prompt_of(start_server(context_length=4096, template=QWEN_TEMPLATE))
    assert '"name": "get_weather"' in text and "You can call these tools" not in text
    assert f"[call_1 get_weather {PARIS}][call_2 now {{}}]" in text and "rain(call_1)" in text
    text = prompt_of(start_server(context_length=4096, template=MISTRAL_TEMPLATE))
    (call_id, _), (_, result_id) = re.findall(r"\[(\w+) get_weather|rain\((\w+)\)", text)
    assert call_id == result_id and re.fullmatch("[a-z0-9]{9}", call_id)


def test_tools_that_may_not_be_used_are_not_shown(server: Server) -> None:
    prompts = [
        prompt_of(server, messages=[USER], **extra)
        for extra in ({"tools": None}, {"tool_choice": "none"}, {"tools": []}, {})
    ]
    assert prompts[0] == prompts[1] == prompts[2] and "get_weather" in prompts[3]


def test_continuing_a_message(server: Server) -> None:
    messages = [*ROUND, {"role": "assistant", "content": "It is"}]
    text = prompt_of(server, messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert text.endswith("<|im_start|>assistant\nIt is")
    text = prompt_of(server, messages=ROUND, add_generation_prompt=False)
    assert text.endswith("</tool_response>\nTell me the result in a sentence.<|im_end|>\n")
    response = server.post(CHAT, messages=ROUND[:2], tools=TOOLS, continue_final_message=True)
    assert response.status_code == 400 and response.json()["error"]["param"] == "continue_final_message"


def tool(name: str = "f", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **parameters}}


def with_property(schema: dict[str, Any]) -> dict[str, Any]:
    return tool(parameters={"properties": {"a": schema}})


def history(**message: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", "content": None} | message]}


def past_call(arguments: str = "{}") -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("é")]}, "tools[0].function.name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool("f\n")]}, "tools[0].function.name"),
        ({"tools": [NOW, tool("f"), tool("f")]}, "tools[2].function.name"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools[0].function.parameters"),
        ({"tools": [tool(parameters={"type": ["object", "null"]})]}, "tools[0].function.parameters"),
        ({"tools": [NOW, with_property({"type": "foo"})]}, "tools[1].function.parameters"),
        ({"tools": [with_property({"$ref": "#/no"})]}, "tools[0].function.parameters"),
        ({"tools": [with_property({"not": {}})]}, "tools[0].function.parameters"),
        ({"tools": [tool(parametres={})]}, "tools[0].function.parametres"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": {}}, "tools"),
        ({"tools": [NOW] * 129}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": WEATHER_CHOICE}, "tool_choice"),
        ({"tool_choice": "any", "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": 1, "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "tool_choice.function"),
        ({"tool_choice": WEATHER_CHOICE, "tools": [NOW]}, "tool_choice.function.name"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        (history(), "messages[1].content"),
        (history(tool_calls=[]), "messages[1].content"),
        (history(tool_calls=[{"id": "c"}]), "messages[1].tool_calls[0].type"),
        (history(tool_calls=[past_call("{")]), "messages[1].tool_calls[0].function.arguments"),
        (history(tool_calls=[past_call("[]")]), "messages[1].tool_calls[0].function.arguments"),
        (history(tool_calls=[past_call("[" * 9999)]), "messages[1].tool_calls[0].function.arguments"),
        (history(tool_calls=[past_call('{"a": "\\ud800"}')]), "messages[1].tool_calls[0].function.arguments"),
        (history(tool_calls=[past_call()], role="user"), "messages[1].tool_calls"),
        (history(function_call={"name": "f", "arguments": "{}"}), "messages[1].function_call"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
    ],
)  # fmt: skip
def test_refused(server: Server, body: dict[str, Any], param: str) -> None:
    response = server.post(CHAT, **{"messages": [USER], **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openai_loop(server: Server, client: openai.OpenAI) -> None:
    server.executor.script = "One moment. " + call("get_weather", PARIS)
    messages: list[Any] = [USER]
    answer = client.chat.completions.create(model="toy", messages=messages, tools=TOOLS)  # type: ignore[arg-type]
    message = answer.choices[0].message
    assert message.tool_calls and message.tool_calls[0].type == "function"
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Paris", "days": 3}
    messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}]
    server.executor.script = "It rains."
    answer = client.chat.completions.create(model="toy", messages=messages, tools=TOOLS)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "It rains." and answer.choices[0].finish_reason == "stop"


def test_openai_stream_helper(server: Server, client: openai.OpenAI) -> None:
    server.executor.script = call("get_weather", PARIS) + "\n" + call("now", "{}")
    with client.chat.completions.stream(model="toy", messages=[USER], tools=TOOLS) as stream:  # type: ignore[arg-type, list-item]
        events = [*stream]
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert final.choices[0].finish_reason == "tool_calls" and message.tool_calls
    assert [item.function.arguments for item in message.tool_calls] == [PARIS, "{}"]
    assert sum(event.type == "tool_calls.function.arguments.done" for event in events) == 2
    server.executor.script = "It rains."
    follow_up: Any = [
        USER,
        message,
        *({"role": "tool", "tool_call_id": item.id, "content": "x"} for item in message.tool_calls),
    ]
    answer = client.chat.completions.create(model="toy", messages=follow_up, tools=TOOLS)  # type: ignore[arg-type]
    assert answer.choices[0].message.content == "It rains."
