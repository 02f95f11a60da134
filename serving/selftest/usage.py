"""Token counts."""

from __future__ import annotations

from typing import Any

from flashlet.serving.selftest.rule import expect, rule, shown
from flashlet.serving.selftest.server import Server


@rule
def always(server: Server) -> None:
    """Plain answers carry usage: prompt_tokens, completion_tokens and their sum."""
    for usage in (server.hello["usage"], server.complete()["usage"]):
        counts = [usage[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
        expect(all(type(count) is int for count in counts), f"usage {shown(usage)}")
        expect(counts[0] > 0 and counts[0] + counts[1] == counts[2], f"usage {shown(usage)}")


@rule
def cached_tokens(server: Server) -> None:
    """prompt_tokens_details.cached_tokens is there always, 0 included."""
    for usage in _usages(server):
        details = usage.get("prompt_tokens_details")
        expect(isinstance(details, dict), f"no prompt_tokens_details: {shown(usage)}")
        count = (details or {}).get("cached_tokens")
        expect(type(count) is int and 0 <= count <= usage["prompt_tokens"], f"cached_tokens {count!r}")


@rule
def completion_details(server: Server) -> None:
    """completion_tokens_details has reasoning_tokens and accepted and rejected_prediction_tokens."""
    for usage in _usages(server):
        details = usage.get("completion_tokens_details")
        expect(isinstance(details, dict), f"no completion_tokens_details: {shown(usage)}")
        for name in ("reasoning_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"):
            expect(type((details or {}).get(name)) is int, f"{name} is {(details or {}).get(name)!r}")


@rule
def same_as_plain(server: Server) -> None:
    """A stream's usage equals the plain answer's."""
    plain, streamed = server.hello["usage"], server.hello_stream.usages[-1]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        expect(plain[name] == streamed[name], f"{name}: plain {plain[name]}, streamed {streamed[name]}")


def _usages(server: Server) -> list[dict[str, Any]]:
    return [server.hello["usage"], server.complete()["usage"], server.hello_stream.usages[-1]]
