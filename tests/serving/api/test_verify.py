"""POST /v1/verify: replays say whether a recorded answer is the one that the request gets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from flashlet.model.fingerprint import Fingerprint

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TEXT = {"prompt": "the user", "max_tokens": 40, "ignore_eos": True}
TALK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "ignore_eos": True}
TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


def verify(server: Server, endpoint: str, request: dict[str, Any], answer: Any, **further: Any) -> Any:
    response = server.post("/v1/verify", endpoint=endpoint, request=request, answer=answer, **further)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(("endpoint", "body"), [(CHAT, TALK), (COMPLETIONS, TEXT)])
@pytest.mark.parametrize(
    "further",
    [
        {"temperature": 0},
        {"seed": 5, "n": 3},
        {"seed": -1, "return_token_ids": True},
        {"temperature": 0, "logprobs": None, "stop": ["a"], "ignore_eos": None},
    ],
)
def test_the_same_again(server: Server, endpoint: str, body: dict[str, Any], further: dict[str, Any]) -> None:
    request = body | further
    answer = server.post(endpoint, **request).json()
    result = verify(server, endpoint, request, answer)
    assert result["identical"] and result["first_difference"] is None
    assert result["fingerprint"] == {
        "match": True, "recorded": answer["system_fingerprint"], "server": answer["system_fingerprint"],
        "differing": [],
    }  # fmt: skip
    # What a streamed request got is told apart by nothing.
    assert verify(server, endpoint, request | {"stream": True, "stream_options": {}}, answer)["identical"]


@pytest.mark.parametrize(("endpoint", "body"), [(CHAT, TALK), (COMPLETIONS, TEXT)])
def test_the_header_has_the_seed_of_a_sampled_answer(
    server: Server, endpoint: str, body: dict[str, Any]
) -> None:
    plain = server.post(endpoint, **body)
    seed = int(plain.headers["x-flashlet-seed"])
    assert 0 <= seed < 2**53
    assert verify(server, endpoint, body, plain.json(), seed=seed)["identical"]
    assert not verify(server, endpoint, body, plain.json(), seed=seed + 1)["identical"]
    streamed = server.post(endpoint, **body, stream=True, seed=-3)
    assert streamed.headers["x-flashlet-seed"] == str(2**64 - 3)
    again = server.post(endpoint, **body, seed=-3).json()
    assert verify(server, endpoint, body, again, seed=2**64 - 3)["identical"]
    refused = server.post("/v1/verify", endpoint=endpoint, request=body, answer=plain.json())
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "seed"
    twice = server.post(
        "/v1/verify", endpoint=endpoint, request=body | {"seed": 1}, answer=plain.json(), seed=2
    )
    assert twice.status_code == 400 and twice.json()["error"]["param"] == "seed"


def test_a_planted_token_is_found(server: Server) -> None:
    request = TEXT | {"seed": 1, "n": 2, "return_token_ids": True}
    answer = server.post(COMPLETIONS, **request).json()
    ids = answer["choices"][1]["token_ids"]
    planted = copy.deepcopy(answer)
    planted["choices"][1]["token_ids"][17] = 7
    assert verify(server, COMPLETIONS, request, planted)["first_difference"] == {
        "choice": 1, "field": "token_ids", "token_index": 17, "character": None,
        "expected": 7, "got": ids[17],
    }  # fmt: skip
    planted["choices"][1]["token_ids"] = ids[:30]
    difference = verify(server, COMPLETIONS, request, planted)["first_difference"]
    assert (difference["token_index"], difference["expected"], difference["got"]) == (30, None, ids[30])
    planted["choices"].reverse()
    assert verify(server, COMPLETIONS, request, planted)["first_difference"] == difference


@pytest.mark.parametrize(("endpoint", "body"), [(CHAT, TALK), (COMPLETIONS, TEXT)])
def test_a_planted_character_is_found(server: Server, endpoint: str, body: dict[str, Any]) -> None:
    request = body | {"seed": 2, "prompt_logprobs": None}
    replay = server.post(endpoint, **request, return_token_ids=True).json()["choices"][0]
    answer = server.post(endpoint, **request).json()
    holder, name = (answer["choices"][0], "text") if endpoint == COMPLETIONS else (
        answer["choices"][0]["message"], "content"
    )  # fmt: skip
    text = holder[name]
    for character in (0, 9, len(text) - 1):
        holder[name] = text[:character] + "#" + text[character + 1 :]
        difference = verify(server, endpoint, request, answer)["first_difference"]
        assert difference["field"] in {"text", "message.content"} and difference["character"] == character
        assert difference["expected"].startswith("#") and difference["got"] == text[character:][:40]
        tokens = replay["token_ids"][: difference["token_index"] + 1]
        model = server.service.model
        assert model is not None
        assert len(model.tokenizer.decode(tokens, continuation=endpoint == COMPLETIONS)) == character + 1
    holder[name] = text
    answer["choices"][0]["finish_reason"] = "stop"
    difference = verify(server, endpoint, request, answer)["first_difference"]
    assert (difference["field"], difference["expected"], difference["got"]) == (
        "finish_reason", "stop", "length",
    )  # fmt: skip


def test_tool_calls_are_compared(start_server: Callable[..., Server]) -> None:
    server = start_server(context_length=8192)
    server.executor.script = '<tool_call>\n{"name": "look", "arguments": {"at": "the sky"}}\n</tool_call>'
    request = TALK | {"tools": [TOOL], "temperature": 0, "max_tokens": 200, "ignore_eos": None}
    answer = server.post(CHAT, **request).json()
    function = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert verify(server, CHAT, request, answer)["identical"]
    function["arguments"] = arguments = function["arguments"][:-1] + "!"
    difference = verify(server, CHAT, request, answer)["first_difference"]
    assert difference["field"] == "message.tool_calls[0].function.arguments"
    assert difference["character"] == len(arguments) - 1 and difference["token_index"] > 0
    function["name"] = "listen"
    assert verify(server, CHAT, request, answer)["first_difference"]["field"].endswith("name")
    del answer["choices"][0]["message"]["tool_calls"]
    assert verify(server, CHAT, request, answer)["first_difference"]["expected"] is None


def test_another_fingerprint_is_reported(server: Server) -> None:
    request = TEXT | {"temperature": 0}
    answer = server.post(COMPLETIONS, **request).json()
    other = Fingerprint("toy weights", "other formats", "scripted", version="0")
    answer["system_fingerprint"] = str(other)
    answer["usage"]["prompt_tokens"] += 1  # another model may count otherwise
    result = verify(server, COMPLETIONS, request, answer)
    assert result["identical"] and not result["fingerprint"]["match"]
    assert result["fingerprint"]["differing"] == ["formats", "version"]
    answer["system_fingerprint"] = "fp_44709d6fcb"
    assert len(verify(server, COMPLETIONS, request, answer)["fingerprint"]["differing"]) == 5
    del answer["system_fingerprint"], answer["usage"]
    assert verify(server, COMPLETIONS, request, answer)["fingerprint"]["recorded"] is None


def test_answers_that_do_not_belong_to_the_request(server: Server) -> None:
    request = TEXT | {"temperature": 0}
    answer = server.post(COMPLETIONS, **request).json()
    changes: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"object": "chat.completion"}, {}, "answer.object"),
        ({"choices": []}, {}, "answer.choices"),
        ({"choices": answer["choices"] * 2}, {}, "answer.choices"),
        ({"choices": [{"index": "0"}]}, {}, "answer"),
        ({"usage": {"prompt_tokens": 1}}, {}, "answer.usage.prompt_tokens"),
        ({}, {"n": 2}, "answer.choices"),
        ({}, {"prompt": "somebody else"}, "answer.usage.prompt_tokens"),
        ({}, {"nonsense": 1}, "request.nonsense"),
        ({}, {"max_tokens": 10_000}, "request.max_tokens"),
    ]
    for in_answer, in_request, param in changes:
        response = server.post(
            "/v1/verify", endpoint=COMPLETIONS, request=request | in_request, answer=answer | in_answer
        )
        assert response.status_code == 400 and response.json()["error"]["param"] == param, response.text
    seeds = server.post(
        "/v1/verify", endpoint=COMPLETIONS, request=request | {"seed": [1]}, answer=answer, seed=1
    )
    assert seeds.status_code == 400 and seeds.json()["error"]["param"] == "seed", seeds.text
    unknown = server.post(
        "/v1/verify", endpoint=COMPLETIONS, request=request | {"model": "other"}, answer=answer
    )
    assert unknown.status_code == 404


def test_the_cache_does_not_vouch_for_itself(start_server: Callable[..., Server]) -> None:
    server = start_server(answer_cache_bytes=1 << 20)
    request = TEXT | {"temperature": 0}
    answer = server.post(COMPLETIONS, **request).json()
    steps = server.service.model.engine_loop.stats().steps  # type: ignore[union-attr]
    assert verify(server, COMPLETIONS, request, answer)["identical"]
    assert server.service.model.engine_loop.stats().steps >= steps + 40  # type: ignore[union-attr]
    assert server.service.metrics.answer_cache_hits == 0
