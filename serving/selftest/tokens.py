"""The tokenizer's endpoints, by which lm-evaluation-harness finds it."""

from __future__ import annotations

from typing import Any

from flashlet.serving.selftest.rule import NotApplicableError, expect, rule, shown
from flashlet.serving.selftest.server import NOT_THERE, Server, answer

TEXT = "Hello, wörld! 日本語 🙂"


@rule
def tokenizer_info(server: Server) -> None:
    """GET /tokenizer_info names eos_token, bos_token, pad_token and chat_template."""
    info = answer(server.get("/tokenizer_info"))
    for name in ("eos_token", "bos_token", "pad_token", "chat_template"):
        expect(name in info, f"no {name}: {shown(info)}")
        expect(info[name] is None or isinstance(info[name], str), f"{name} is {shown(info[name])}")


@rule
def tokenize(server: Server) -> None:
    """POST /tokenize {"prompt", "add_special_tokens"} gives {"tokens"}."""
    for special in (False, True):
        ids = _tokens(server, special)
        expect(ids and all(type(token) is int for token in ids), f"tokens {shown(ids)}")


@rule
def no_special_tokens(server: Server) -> None:
    """add_special_tokens false adds nothing: the ids are those of the text alone."""
    ids, with_special = _tokens(server, False), _tokens(server, True)
    if not ids:
        raise NotApplicableError("/tokenize does not take a prompt")
    start = next((i for i in range(len(with_special)) if with_special[i : i + len(ids)] == ids), None)
    expect(start is not None, f"{shown(with_special)} does not contain {shown(ids)}")


@rule
def detokenize(server: Server) -> None:
    """POST /detokenize {"tokens"} gives the text back in {"prompt"}."""
    body = answer(server.post("/detokenize", {"tokens": server.tokens(TEXT)}))
    expect(body.get("prompt") == TEXT, f"got {shown(body)}")


def _tokens(server: Server, special: bool) -> list[Any]:
    response = server.post("/tokenize", {"prompt": TEXT, "add_special_tokens": special})
    if response.status_code in NOT_THERE:
        raise NotApplicableError("there is no /tokenize")
    return list(answer(response)["tokens"])
