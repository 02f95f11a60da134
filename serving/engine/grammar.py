"""What an answer must match: a JSON schema, a regular expression, a list of choices, or a Lark grammar.

Everything becomes Lark text in llguidance's dialect, so that one compiler and one set of limits serve all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashlet.serving.engine.grammar_constraint import GrammarConstraint
from flashlet.serving.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

MAX_SOURCE = 1 << 17  # characters

# A space after commas and colons, and single line breaks with an indentation, as models know it;
# any more, and small models write white space without end.
_JSON_OPTIONS = {
    "item_separator": ", ?",
    "key_separator": ": ?",
    "whitespace_pattern": r"\n {0,16}",
    "lenient": False,
    "coerce_one_of": False,
}

# Without forced tokens, a mask's cost is bounded by the limits below, and text that looks like a special
# token is never written as one. At the end, because the last of several directives wins.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


@dataclass(frozen=True, slots=True)
class Grammar:
    """Source of a grammar; equal ones are compiled once, and what is wrong with one comes out then.

    `Grammar(text)` takes Lark text as it is. It begins at the rule `start`. Besides plain Lark there are
    `%json {...}` (a JSON schema as a rule's body), `%lark {...}` (a grammar in a grammar), `name[lazy]: /x/`
    (ends at the first match), `A & B` and `~A` in terminals, repetition `x{2,5}`, and special tokens by name
    or id, `<|name|>` or `<[17]>`; other text never produces a special token. Free text up to a trigger is
    `text[lazy]: /(?s:.*)TRIGGER/`, and free text without it `TEXT: ~/(?s:.*)TRIGGER(?s:.*)/`.
    """

    lark: str
    schema: str | None = None  # the JSON schema in it, to tell where it is wrong

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any]) -> Grammar:
        """JSON that `schema` accepts; white space is optional and bounded."""
        embedded = json.dumps({**schema, "x-guidance": _JSON_OPTIONS}, ensure_ascii=False)
        return cls(f"start: %json {embedded}", json.dumps(schema, ensure_ascii=False))

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        r"""A regular expression in Rust's syntax (no look-around, no back-references), matched as a whole.

        `\d` is 0 to 9; `\w` and `\s` are those of Unicode.
        Raises GrammarError if it ends in the middle of an escape.
        """
        from llguidance import regex_to_lark

        if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
            raise GrammarError("expected a character after the last backslash, got none")
        return cls(f"start: /{regex_to_lark(pattern, 'd')}/")

    @classmethod
    def choice(cls, choices: Iterable[str]) -> Grammar:
        """One of several texts."""
        alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return cls(f"start: CHOICE\nCHOICE: {alternatives}")

    def as_rule(self, name: str) -> str:
        """Lark text that makes this grammar the rule `name` of a larger one."""
        return f"{name}: %lark {{\n{self.lark}\n}}"

    @property
    def source(self) -> str:
        """What llguidance compiles."""
        return self.lark + _OPTIONS


class CompiledGrammar:
    """A grammar that is ready to be followed, for one vocabulary. Shared among sequences and threads."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._matcher = matcher  # at the start; never advanced
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids

    def constraint(
        self, stop_token_ids: Sequence[int] = (), min_tokens: int = 0, put_off: Sequence[int] = ()
    ) -> GrammarConstraint:
        """A fresh constraint for one sequence.

        Where the grammar can go on without them, `stop_token_ids` are not allowed among the first
        `min_tokens` tokens, and those in `put_off` never.
        """
        return GrammarConstraint(
            self._matcher.deep_copy(),
            vocab_size=self._vocab_size,
            eos_token_ids=self._eos_token_ids,
            stop_token_ids=stop_token_ids,
            min_tokens=min_tokens,
            put_off=put_off,
        )


def parser_limits() -> LLParserLimits:
    """Bounds on compilation and on every mask: in steps, not seconds, so that answers are reproducible."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=25_000,
        max_lexer_states=20_000,  # about 2 kB each, per sequence
        max_grammar_size=100_000,
        precompute_large_lexemes=False,  # costs time before the first token, and is not needed
        verbose_errors=False,
    )
