"""Run all rules against one server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

import httpx

from flashlet.serving.errors import RequestError
from flashlet.serving.selftest.rule import RULES, NotApplicableError, Rule, RuleBrokenError
from flashlet.serving.selftest.server import Server

Status = Literal["pass", "fail", "not applicable"]
SECTIONS = {
    "errors": "Errors",
    "sse": "Server-sent events",
    "chat": "Chat",
    "tools": "Tool calls",
    "usage": "Usage",
    "completions": "Completions and logprobs",
    "tokens": "Tokenizer",
    "models": "Models",
    "embeddings": "Embeddings",
    "health": "Health and keys",
    "metrics": "Metrics",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule came to; encodes to JSON as it stands."""

    section: str
    name: str
    rule: str
    status: Status
    reason: str | None  # None: passed


def all_rules() -> list[Rule]:
    """Every rule, section by section."""
    for section in SECTIONS:
        import_module(f"flashlet.serving.selftest.{section}")  # its checks register themselves
    return sorted(RULES, key=lambda rule: list(SECTIONS).index(rule.section))


def run_rules(server: Server) -> Iterator[Outcome]:
    """Check rule after rule; whatever a server answers, no check ends the run.

    Raises:
        RequestError: the server cannot be reached any more.
    """
    for rule in all_rules():
        status, reason = _check(rule, server)
        yield Outcome(rule.section, rule.name, rule.text, status, reason)


def _check(rule: Rule, server: Server) -> tuple[Status, str | None]:
    try:
        try:
            rule.check(server)
        except httpx.RemoteProtocolError:  # an idle connection that the server had closed: clients ask again
            rule.check(server)
    except NotApplicableError as exc:
        return "not applicable", str(exc)
    except RuleBrokenError as exc:
        return "fail", str(exc)
    except httpx.ConnectError as exc:  # it would fail all other rules, too
        raise RequestError(f"the server went away at the rule {rule.section}/{rule.name}: {exc}") from exc
    except httpx.HTTPError as exc:
        return "fail", f"no answer: {exc or type(exc).__name__}"
    except (LookupError, TypeError, ValueError, AttributeError) as exc:  # an answer of another shape
        return "fail", f"unexpected answer: {type(exc).__name__}: {exc}"
    return "pass", None
