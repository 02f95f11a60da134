"""Rules: one promise about the wire, its check, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashlet.serving.selftest.server import Server

    Check = Callable[[Server], None]


class RuleBrokenError(Exception):
    """The server does otherwise; the message says what it did."""


class NotApplicableError(Exception):
    """The rule cannot be checked on this server; the message says why."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A promise in one line and the function that checks it."""

    section: str
    name: str
    text: str
    check: Check


RULES: list[Rule] = []


def rule(check: Check) -> Check:
    """Register a check; its module names the section, its docstring states the rule."""
    section = check.__module__.rpartition(".")[2]
    name = check.__name__.replace("_", "-")
    RULES.append(Rule(section, name, (check.__doc__ or name).removesuffix("."), check))
    return check


def expect(condition: object, found: str) -> None:
    """Raise RuleBrokenError with what was found, unless `condition` holds."""
    if not condition:
        raise RuleBrokenError(found)


def shown(value: object) -> str:
    """A value as a message shows it: at most 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"
