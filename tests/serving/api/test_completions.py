"""/v1/completions: prompts in all forms, echo, and log probabilities as lm-evaluation-harness reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flashlet.model.tokenizer import Tokenizer
    from tests.serving.api.conftest import Server

COMPLETIONS = "/v1/completions"


def plain(server: Server, **body: Any) -> dict[str, Any]:
    response = server.post(COMPLETIONS, **{"seed": 7, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def tokens(server: Server, text: str) -> list[int]:
    ids: list[int] = server.post("/tokenize", prompt=text, add_special_tokens=False).json()["tokens"]
    return ids


def test_shape_and_default_limit(server: Server) -> None:
    answer = plain(server, prompt="the user", ignore_eos=True)
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
    assert answer["usage"]["completion_tokens"] == 16 and choice["finish_reason"] == "length"


def test_prompt_forms_are_the_same(server: Server) -> None:
    ids = tokens(server, "the user")
    texts = [
        plain(server, prompt=prompt)["choices"][0]["text"]
        for prompt in ("the user", ["the user"], ids, [ids])
    ]
    assert len(set(texts)) == 1


def test_list_prompts_and_choices(server: Server) -> None:
    """`index` is prompt number x n + choice; each answer is that of its prompt alone."""
    prompts = ["the user", "the city", "日 🙂"]
    answer = plain(server, prompt=prompts, n=2, max_tokens=12)
    assert [choice["index"] for choice in answer["choices"]] == [*range(6)]
    alone = [plain(server, prompt=prompt, n=2, max_tokens=12) for prompt in prompts]
    assert [choice["text"] for choice in answer["choices"]] == [
        choice["text"] for one in alone for choice in one["choices"]
    ]
    for field in ("prompt_tokens", "completion_tokens"):
        assert answer["usage"][field] == sum(one["usage"][field] for one in alone)
    events = server.stream(COMPLETIONS, prompt=prompts, n=2, max_tokens=12, seed=7)
    assert events.pop() == "[DONE]"
    texts, reasons = [""] * 6, [""] * 6
    for event in events:
        (choice,) = json.loads(event)["choices"]
        assert not reasons[choice["index"]]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in answer["choices"]]
    assert reasons == [choice["finish_reason"] for choice in answer["choices"]]


def test_echo(server: Server) -> None:
    prompt = "日 the 🙂"
    answer = plain(server, prompt=prompt, max_tokens=5)["choices"][0]["text"]
    assert plain(server, prompt=prompt, max_tokens=5, echo=True)["choices"][0]["text"] == prompt + answer
    ids = tokens(server, prompt)
    assert plain(server, prompt=ids, max_tokens=5, echo=True)["choices"][0]["text"] == prompt + answer
    events = server.stream(COMPLETIONS, prompt=prompt, max_tokens=5, echo=True, seed=7)[:-1]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == prompt + answer


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
def test_logprobs_as_lm_eval_reads_them(server: Server, max_tokens: int) -> None:
    prompts = [tokens(server, text) for text in ("the user and the city", "🙂 talk", "a")]
    body = {
        "prompt": prompts,
        "max_tokens": max_tokens,
        "echo": True,
        "logprobs": 2,
        "temperature": 0,
        "seed": 1234,
    }
    answer = plain(server, **body)
    for prompt, choice in zip(prompts, answer["choices"], strict=True):
        logprobs = choice["logprobs"]
        lengths = {len(values) for values in logprobs.values()}
        assert (
            logprobs.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
            and len(lengths) == 1
        )
        assert len(prompt) <= lengths.pop() <= len(prompt) + max_tokens
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        rest = zip(
            logprobs["tokens"][1:], logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        )
        for token, value, top in rest:
            assert top[token] == value
            assert len(top) == 2 and [*top.values()] == sorted(top.values(), reverse=True)
    alone = [plain(server, **(body | {"prompt": prompt}))["choices"][0] for prompt in prompts]
    assert [{**choice, "index": 0} for choice in answer["choices"]] == alone
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))


def test_a_generated_eos_is_listed(server: Server) -> None:
    info = server.client.get("/tokenizer_info").json()
    (eos,) = tokens(server, info["eos_token"])
    prompt = tokens(server, "the user")
    body = {"prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1, "logit_bias": {str(eos): 100}}
    choice = plain(server, **body)["choices"][0]
    assert choice["text"] == "the user" and choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["tokens"]) == len(prompt) + 1
    assert choice["logprobs"]["tokens"][-1] == info["eos_token"]
    assert choice["logprobs"]["text_offset"][-1] == len("the user")


def test_text_offsets_point_into_the_text(server: Server) -> None:
    choice = plain(server, prompt="日 the user", max_tokens=40, echo=True, logprobs=0)["choices"][0]
    logprobs = choice["logprobs"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<|")):
            assert choice["text"][offset : offset + len(token)] == token
    assert all(
        [*top] == [token]
        for token, top in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True)
    )


def test_streamed_logprobs_equal_plain(server: Server) -> None:
    body = {"prompt": "the 日", "max_tokens": 20, "echo": True, "logprobs": 3, "seed": 3, "stop": "é"}
    choice = plain(server, **body)["choices"][0]
    events = [json.loads(event)["choices"][0] for event in server.stream(COMPLETIONS, **body)[:-1]]
    assert "".join(event["text"] for event in events) == choice["text"]
    parts = [event["logprobs"] for event in events if event["logprobs"]]
    joined = {key: [value for part in parts for value in part[key]] for key in choice["logprobs"]}
    assert joined == choice["logprobs"]


def test_an_answer_that_continues_a_text_keeps_its_space(
    server: Server, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SentencePiece texts lose the space before their first word; " Paris" behind "is" must not."""
    monkeypatch.setattr(tokenizer, "_strip_leading_space", True)
    (space,) = tokens(server, " ")
    body = {"max_tokens": 3, "logit_bias": {str(space): 100}}
    assert plain(server, prompt="is", **body)["choices"][0]["text"] == "   "
    assert plain(server, prompt="is", echo=True, **body)["choices"][0]["text"] == "is   "

    def chat(*messages: dict[str, str], **fields: Any) -> str:
        answer = server.post("/v1/chat/completions", messages=messages, **body, **fields).json()
        text: str = answer["choices"][0]["message"]["content"]
        return text

    question, opening = {"role": "user", "content": "where?"}, {"role": "assistant", "content": "It is"}
    assert chat(question) == "  "
    assert chat(question, opening, continue_final_message=True) == "   "


def test_max_tokens_zero_without_echo(server: Server) -> None:
    answer = plain(server, prompt="the user", max_tokens=0)
    assert answer["choices"][0]["text"] == "" and answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_cached_tokens_are_those_of_the_prompt_not_of_its_choices(server: Server, stream: bool) -> None:
    prompt = f"{stream} never asked before"

    def cached(n: int) -> int:
        body = {"prompt": prompt, "n": n, "max_tokens": 1, "seed": 1}
        if stream:
            last = server.stream(COMPLETIONS, stream_options={"include_usage": True}, **body)[-2]
            usage = json.loads(last)["usage"]
        else:
            usage = plain(server, **body)["usage"]
        number: int = usage["prompt_tokens_details"]["cached_tokens"]
        assert 0 <= number < usage["prompt_tokens"]
        return number

    assert cached(3) == 0
    assert cached(3) == cached(1) >= 8


def test_best_of_n_is_n(server: Server) -> None:
    assert len(plain(server, prompt="a", n=2, best_of=2, suffix=None)["choices"]) == 2


def test_tokenize_and_back(server: Server) -> None:
    text = "the user 日 🙂 <|im_end|>"
    answer = server.post("/tokenize", prompt=text).json()
    assert answer["count"] == len(answer["tokens"]) and answer["max_model_len"] == 512
    assert server.post("/detokenize", tokens=answer["tokens"]).json() == {"prompt": text}
    info = server.client.get("/tokenizer_info").json()
    assert (info["eos_token"], info["bos_token"], info["pad_token"]) == (
        "<|im_end|>",
        "<|im_start|>",
        "<|endoftext|>",
    )
    assert "im_start" in info["chat_template"]
