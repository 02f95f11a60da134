"""Legacy completions and log probabilities."""

from __future__ import annotations

from typing import Any

from flashlet.serving.selftest.rule import NotApplicableError, expect, rule, shown
from flashlet.serving.selftest.server import COMPLETIONS, Server, answer, error_of

TEXT = "The capital of France is"
# What lm-evaluation-harness asks of a server to score a text.
SCORE = {"max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1234}


@rule
def prompt_forms(server: Server) -> None:
    """Prompt is a string, a list of strings, token ids, or a list of lists of ids."""
    ids = server.tokens(TEXT)
    for prompts, count in ((TEXT, 1), ([TEXT, TEXT], 2), (ids, 1), ([ids, ids, ids], 3)):
        choices = server.complete(prompt=prompts, max_tokens=2)["choices"]
        expect(len(choices) == count, f"{len(choices)} choices for {shown(prompts)}")


@rule
def index(server: Server) -> None:
    """Index is the prompt's number times n, plus the choice."""
    plain = [
        choice["index"] for choice in server.complete(prompt=[TEXT, "Hello"], n=2, max_tokens=2)["choices"]
    ]
    expect(sorted(plain) == [0, 1, 2, 3], f"indexes {plain}")
    streamed = server.completion_stream(prompt=[TEXT, "Hello"], n=2, max_tokens=2).choices
    found = {choice["index"] for choice in streamed}
    expect(found == {0, 1, 2, 3}, f"indexes {sorted(found)} in the stream")


@rule
def finish_reason(server: Server) -> None:
    """finish_reason is stop, length or content_filter, at the end of the stream too."""
    reasons = [server.complete()["choices"][0]["finish_reason"], *server.completion_stream().finish_reasons]
    expect(len(reasons) == 2, f"finish reasons {reasons}")
    expect(set(reasons) <= {"stop", "length", "content_filter"}, f"finish reasons {reasons}")


@rule
def echo(server: Server) -> None:
    """Echo: the text begins with the prompt, or 400."""
    body = _honoured(server, echo=True)
    expect(body["choices"][0]["text"].startswith(TEXT), f"text {shown(body['choices'][0]['text'])}")


@rule
def suffix(server: Server) -> None:
    """Suffix is honoured, or 400."""
    body = _honoured(server, suffix=", said the tall man to the other one.")
    same = body["usage"]["prompt_tokens"] == server.complete()["usage"]["prompt_tokens"]
    expect(not same, "suffix was ignored: the prompt has as many tokens as without it")


@rule
def best_of(server: Server) -> None:
    """best_of is honoured, or 400."""
    body = _honoured(server, best_of=3, temperature=1)
    expect(body["usage"]["completion_tokens"] > 8, "best_of was ignored: one answer was written")


@rule
def legacy_logprobs(server: Server) -> None:
    """Legacy logprobs are {tokens, token_logprobs, top_logprobs, text_offset}, of equal length."""
    for choice in (server.complete(logprobs=3)["choices"][0], _streamed_logprobs(server)):
        logprobs = choice["logprobs"]
        names = {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
        expect(isinstance(logprobs, dict) and names <= set(logprobs), f"logprobs {shown(logprobs)}")
        expect(len({len(logprobs[name]) for name in names}) == 1, "the lists differ in length")
        for value, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
            expect(value <= 0 and len(top) >= 3, f"logprob {value}, alternatives {shown(top)}")


@rule
def chat_logprobs(server: Server) -> None:
    """Chat logprobs are content[] of {token, logprob, bytes, top_logprobs}, with up to 20 alternatives."""
    count = 20
    plain = server.chat(logprobs=True, top_logprobs=count, max_tokens=4)["choices"][0]["logprobs"]["content"]
    streamed = [
        entry
        for choice in server.chat_stream(logprobs=True, top_logprobs=count, max_tokens=4).choices
        for entry in (choice.get("logprobs") or {}).get("content") or ()
    ]
    expect(len(plain) == len(streamed) > 0, f"{len(plain)} entries plain, {len(streamed)} streamed")
    for entry in (*plain, *streamed):
        expect({"token", "logprob", "bytes", "top_logprobs"} <= set(entry), f"entry {shown(entry)}")
        expect(len(entry["top_logprobs"]) == count, f"{len(entry['top_logprobs'])} alternatives")
        for other in entry["top_logprobs"]:
            expect({"token", "logprob", "bytes"} <= set(other), f"alternative {shown(other)}")


@rule
def scoring_length(server: Server) -> None:
    """Scoring (echo, logprobs 1, max_tokens 1): prompt + 1 entries for token ids, no BOS added."""
    for ids, choice in _scored(server):
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            count = len(choice[name])
            expect(count == len(ids) + 1, f"{count} {name} for a prompt of {len(ids)} ids")


@rule
def scoring_nulls(server: Server) -> None:
    """Scoring: entry 0 is null in token_logprobs and in top_logprobs, the others are numbers."""
    for _, choice in _scored(server):
        expect(choice["token_logprobs"][0] is None, f"token_logprobs[0] is {choice['token_logprobs'][0]!r}")
        expect(choice["top_logprobs"][0] is None, f"top_logprobs[0] is {shown(choice['top_logprobs'][0])}")
        expect(
            all(isinstance(value, float) for value in choice["token_logprobs"][1:]), "a null among numbers"
        )


@rule
def scoring_top(server: Server) -> None:
    """Scoring: the token's float is the same in both lists, and the likeliest token is in the dictionary."""
    for _, choice in _scored(server):
        rows = zip(choice["tokens"], choice["token_logprobs"], choice["top_logprobs"], strict=True)
        for token, value, top in list(rows)[1:]:
            expect(top, f"no alternatives for {token!r}")
            expect(token not in top or top[token] == value, f"{token!r} is {value} and {top.get(token)}")
            expect(max(top.values()) >= value, f"{token!r} ({value}) beats the top: {shown(top)}")


@rule
def scoring_batches(server: Server) -> None:
    """Scoring: prompts sent together get the floats that they get alone, bit for bit."""
    together = _scored(server)
    for ids, choice in together:
        alone = _score(server, [ids])[0]
        expect(alone["token_logprobs"] == choice["token_logprobs"], "other floats in a batch")


@rule
def scoring_end(server: Server) -> None:
    """Scoring: the generated token is listed even when it ends the answer."""
    ids = server.tokens(TEXT)
    end = _end_of_text(server)
    body = server.completion_body(prompt=ids, **SCORE, logit_bias={str(end): 100})
    choice = answer(server.post(COMPLETIONS, body))["choices"][0]
    if choice["finish_reason"] != "stop":
        raise NotApplicableError("logit_bias does not make the model end its answer")
    count = len(choice["logprobs"]["tokens"])
    expect(count == len(ids) + 1, f"{count} entries for a prompt of {len(ids)} ids")


@rule
def echo_alone(server: Server) -> None:
    """max_tokens 0 with echo returns the prompt alone."""
    body = server.complete(echo=True, max_tokens=0, logprobs=1)
    expect(body["choices"][0]["text"] == TEXT, f"text {shown(body['choices'][0]['text'])}")
    expect(body["usage"]["completion_tokens"] == 0, f"{body['usage']['completion_tokens']} tokens written")


def _honoured(server: Server, **fields: Any) -> dict[str, Any]:
    """The answer to a request with an optional field; 400 that names it is as good as an answer."""
    response = server.post(COMPLETIONS, server.completion_body(**fields))
    if response.status_code == 400:
        name = next(iter(fields))
        param = error_of(response).get("param")
        expect(param == name, f"400 with param {param!r}")
        raise NotApplicableError(f"{name} is refused with 400, as it may be")
    return answer(response)


def _streamed_logprobs(server: Server) -> dict[str, Any]:
    """The logprobs of a stream, put together."""
    lists: dict[str, list[Any]] = {}
    for choice in server.completion_stream(logprobs=3).choices:
        for name, values in (choice.get("logprobs") or {}).items():
            lists.setdefault(name, []).extend(values)
    return {"logprobs": lists}


def _scored(server: Server) -> list[tuple[list[int], dict[str, list[Any]]]]:
    """Two prompts of token ids, and the legacy logprobs that a batch of both gives."""
    prompts = [server.tokens(TEXT), server.tokens("Water boils at a hundred degrees.")]
    return list(zip(prompts, _score(server, prompts), strict=True))


def _score(server: Server, prompts: list[list[int]]) -> list[dict[str, list[Any]]]:
    choices = server.complete(prompt=prompts, **SCORE)["choices"]
    found = [choice.get("logprobs") or {} for choice in choices]
    expect(
        all({"tokens", "token_logprobs", "top_logprobs"} <= set(lists) for lists in found), shown(found[0])
    )
    return found


def _end_of_text(server: Server) -> int:
    """Id of the token that ends an answer."""
    response = server.get("/tokenizer_info")
    if response.status_code != 200:
        raise NotApplicableError("which token ends an answer is not known without /tokenizer_info")
    ids = server.tokens(response.json()["eos_token"])
    if len(ids) != 1:
        raise NotApplicableError("/tokenize does not know the end token by its text")
    return ids[0]
