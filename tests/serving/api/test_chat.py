"""/v1/chat/completions: shapes, streams, and their equality."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.serving.api.conftest import Server

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "talk about the weather"}]
SPECULATION = {"reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}


def plain(server: Server, **body: Any) -> dict[str, Any]:
    response = server.post(CHAT, **{"messages": MESSAGES, "seed": 7, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def streamed(server: Server, **body: Any) -> list[dict[str, Any]]:
    """Chunks of a stream whose frame is checked."""
    events = server.stream(CHAT, **{"messages": MESSAGES, "seed": 7, **body})
    assert events.pop() == "[DONE]" and "[DONE]" not in events
    chunks = [json.loads(event) for event in events]
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and "error" not in chunk for chunk in chunks)
    return chunks


def assemble(chunks: list[dict[str, Any]], index: int = 0) -> tuple[str, str]:
    """Text and finish reason of one choice, by the rules of wire.md."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] is not None
    assert all(choice["finish_reason"] is None for choice in choices[:-1])
    return "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]["finish_reason"]


def test_plain_answer(server: Server) -> None:
    answer = plain(server, max_tokens=5, ignore_eos=True)
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "toy" and answer["system_fingerprint"].startswith("fp_")
    (choice,) = answer["choices"]
    assert (
        choice["message"].keys() == {"role", "content", "refusal"}
        and choice["message"]["role"] == "assistant"
    )
    assert choice["finish_reason"] == "length" and choice["logprobs"] is None
    usage = answer["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert usage["prompt_tokens_details"].keys() == {"cached_tokens"}
    assert usage["completion_tokens_details"] == SPECULATION


def test_prompt_is_the_rendered_template(server: Server) -> None:
    text = "<|im_start|>user\ntalk about the weather<|im_end|>\n<|im_start|>assistant\n"
    same = server.post("/v1/completions", prompt=text, seed=7, max_tokens=20, add_special_tokens=False).json()
    answer = plain(server, max_tokens=20)
    assert answer["choices"][0]["message"]["content"] == same["choices"][0]["text"]
    assert answer["usage"]["prompt_tokens"] == same["usage"]["prompt_tokens"]
    assert same["usage"]["prompt_tokens_details"]["cached_tokens"] < same["usage"]["prompt_tokens"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_tokens": 30},
        {"max_tokens": 31, "ignore_eos": True},
        {"stop": ["日", "é"], "max_tokens": 40},
        {"stop": "ag", "include_stop_str_in_output": True},
        {"stop": ["🙂 ", "a b", "zz"], "min_tokens": 12, "temperature": 0},
    ],
)
def test_stream_equals_plain(server: Server, seed: int, limits: dict[str, Any]) -> None:
    answer = plain(server, seed=seed, **limits)
    chunks = streamed(server, seed=seed, stream_options={"include_usage": True}, **limits)
    usage = chunks.pop()
    assert usage["choices"] == [] and all(chunk["usage"] is None for chunk in chunks)
    choice = answer["choices"][0]
    assert assemble(chunks) == (choice["message"]["content"], choice["finish_reason"])
    for field in ("prompt_tokens", "completion_tokens", "total_tokens", "completion_tokens_details"):
        assert usage["usage"][field] == answer["usage"][field]
    if choice["finish_reason"] == "length":
        assert len(chunks) == answer["usage"]["completion_tokens"] + 2  # the role, one per token, the reason
    if limits.get("stop") == ["日", "é"]:
        assert not set("日é") & set(choice["message"]["content"])


def test_choices(server: Server) -> None:
    """Choice i is the answer to seed + i, streamed or not."""
    alone = [plain(server, seed=seed, max_tokens=20)["choices"][0] for seed in (7, 8, 9)]
    together = plain(server, n=3, max_tokens=20)
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2]
    contents = [choice["message"]["content"] for choice in together["choices"]]
    assert contents == [choice["message"]["content"] for choice in alone]
    assert len(set(contents)) == 3
    chunks = streamed(server, n=3, max_tokens=20)
    assert [assemble(chunks, index)[0] for index in range(3)] == contents
    single = plain(server, max_tokens=20)
    assert together["usage"]["prompt_tokens"] == single["usage"]["prompt_tokens"]


def test_seeds(server: Server) -> None:
    """Without a seed answers differ; negative ones work."""
    free = {
        plain(server, seed=None, max_tokens=30, ignore_eos=True)["choices"][0]["message"]["content"]
        for _ in "abc"
    }
    assert len(free) > 1
    assert plain(server, seed=-1, max_tokens=9)["choices"] == plain(server, seed=-1, max_tokens=9)["choices"]


def test_continuous_usage(server: Server) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = streamed(server, max_tokens=4, ignore_eos=True, stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == [1, 1, 2, 3, 4, 4, 4]


@pytest.mark.parametrize("top", [0, 1, 3, 20])
def test_logprobs(server: Server, top: int) -> None:
    body = {"logprobs": True, "top_logprobs": top, "max_tokens": 40}
    answer = plain(server, **body)
    (choice,) = answer["choices"]
    content = choice["logprobs"]["content"]
    assert choice["logprobs"]["refusal"] is None
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode() == choice["message"]["content"]
    ended = choice["finish_reason"] == "stop"
    assert len(content) == answer["usage"]["completion_tokens"] - ended
    for entry in content:
        assert entry.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(entry["top_logprobs"]) == top
        assert all(
            alternative.keys() == {"token", "logprob", "bytes"} for alternative in entry["top_logprobs"]
        )
        values = [alternative["logprob"] for alternative in entry["top_logprobs"]]
        assert values == sorted(values, reverse=True)
    chunks = streamed(server, **body)
    parts = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    assert [entry for part in parts for entry in part["content"]] == content


def test_messages_in_all_forms(server: Server) -> None:
    """Parts, developer, tool results, names, and fields that SDKs send back as null."""
    parts = [{"type": "text", "text": "talk about"}, {"type": "text", "text": "the weather"}]
    assert (
        plain(server, messages=[{"role": "user", "content": parts}], max_tokens=9)["choices"]
        == plain(server, messages=[{"role": "user", "content": "talk about\nthe weather"}], max_tokens=9)[
            "choices"
        ]
    )
    system = [{"role": "system", "content": "be kind"}, *MESSAGES]
    developer = [{"role": "developer", "content": "be kind"}, *MESSAGES]
    assert plain(server, messages=system)["choices"] == plain(server, messages=developer)["choices"]
    history = [
        *MESSAGES,
        {"role": "assistant", "content": "fine", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "tool", "content": "21", "tool_call_id": "call_1"},
        {"role": "user", "content": "and?", "name": "ann"},
    ]
    assert plain(server, messages=history, max_tokens=3)["choices"]


def test_continue_final_message(server: Server) -> None:
    opening = "The weather is"
    text = f"<|im_start|>user\ntalk about the weather<|im_end|>\n<|im_start|>assistant\n{opening}"
    same = server.post("/v1/completions", prompt=text, seed=7, max_tokens=20, add_special_tokens=False).json()
    messages = [*MESSAGES, {"role": "assistant", "content": opening}]
    answer = plain(server, messages=messages, continue_final_message=True, max_tokens=20)
    assert answer["choices"][0]["message"]["content"] == same["choices"][0]["text"]


def test_fields_without_effect(server: Server) -> None:
    nothing = dict.fromkeys(
        [
            "model",
            "n",
            "stop",
            "tools",
            "tool_choice",
            "response_format",
            "logit_bias",
            "top_p",
            "stream_options",
        ]
    )
    ignored = {
        "user": "ann",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "verbosity": "low",
        "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"],
        "response_format": {"type": "text"},
    }
    assert (
        plain(server, max_tokens=9, **(nothing | ignored))["choices"]
        == plain(server, max_tokens=9)["choices"]
    )
    options = {"include_obfuscation": True, "include_usage": None}
    assert streamed(server, max_tokens=2, stream_options=options)[-1]["choices"]


def test_max_tokens_by_both_names(server: Server) -> None:
    for names in (
        {"max_tokens": 3},
        {"max_completion_tokens": 3},
        {"max_completion_tokens": 3, "max_tokens": 9},
    ):
        assert plain(server, ignore_eos=True, **names)["usage"]["completion_tokens"] == 3
    rest = plain(server, ignore_eos=True)["usage"]
    assert rest["total_tokens"] == 512


def test_logit_bias_and_stop_token(server: Server) -> None:
    token = server.post("/tokenize", prompt="z").json()["tokens"][0]
    answer = plain(server, logit_bias={str(token): 100}, max_tokens=4)
    assert answer["choices"][0]["message"]["content"] == "zzzz"
    answer = plain(server, logit_bias={str(token): 100}, stop_token_ids=[token], logprobs=True)
    assert answer["choices"][0]["message"]["content"] == "" and answer["usage"]["completion_tokens"] == 1
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["logprobs"]["content"] == []


def test_a_token_without_text_has_its_chunk(server: Server) -> None:
    """Also the last one: clients count chunks."""
    eos = server.post("/tokenize", prompt="<|im_end|>", add_special_tokens=False).json()["tokens"][0]
    body = {"logit_bias": {str(eos): 100}, "max_tokens": 4}
    ignored = streamed(server, ignore_eos=True, **body)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in ignored] == ["", "", "", "", "", None]
    ended = streamed(server, **body)
    assert [chunk["choices"][0]["finish_reason"] for chunk in ended] == [None, "stop"]
