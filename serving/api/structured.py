"""Structured output: from the fields of a request to a compiled grammar."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from flashlet.serving.api.loaded_model import LoadedModel
from flashlet.serving.api.schema.structured import JsonSchemaFormat, StructuredFields
from flashlet.serving.engine.grammar import CompiledGrammar, Grammar
from flashlet.serving.errors import GrammarError, InvalidRequestError


async def compile_grammar(model: LoadedModel, grammar: Grammar, param: str) -> CompiledGrammar:
    """`grammar` for the vocabulary of `model`; the same one again costs nothing.

    Raises:
        GrammarError: it cannot be compiled; names `param`, and where in a schema.
        QueueFullError: too many others are being compiled.
    """
    try:
        return await model.grammars.compile(grammar)
    except GrammarError as exc:
        raise GrammarError(f"{param}: {exc}", param) from exc


async def format_grammar(model: LoadedModel, fields: StructuredFields) -> CompiledGrammar | None:
    """What the answer must match; None for free text. Raises InvalidRequestError and QueueFullError."""
    requested = requested_grammar(fields)
    if requested is None:
        return None
    param, grammar = requested
    return await compile_grammar(model, grammar, param)


def requested_grammar(fields: StructuredFields) -> tuple[str, Grammar] | None:
    """The field that restricts the answer, and the grammar that it asks for; not compiled yet.

    Raises:
        InvalidRequestError: several fields, or a malformed schema.
    """
    try:
        requested = list(_requested(fields))
    except GrammarError as exc:
        raise GrammarError(f"guided_regex: {exc}", "guided_regex") from None
    if len(requested) > 1:
        first, second = requested[0][0], requested[1][0]
        raise InvalidRequestError(f"{second}: not allowed together with {first}", second)
    return requested[0] if requested else None


def _requested(fields: StructuredFields) -> Iterator[tuple[str, Grammar]]:
    response_format = fields.response_format
    if isinstance(response_format, JsonSchemaFormat):
        yield "response_format", Grammar.json_schema(response_format.json_schema.definition)
    elif response_format is not None and response_format.type == "json_object":
        yield "response_format", Grammar.json_object()
    if fields.guided_json is not None:
        yield "guided_json", Grammar.json_schema(_schema(fields.guided_json))
    if fields.guided_regex is not None:
        yield "guided_regex", Grammar.regex(fields.guided_regex)
    if fields.guided_choice is not None:
        yield "guided_choice", Grammar.choice(fields.guided_choice)
    if fields.guided_grammar is not None:
        yield "guided_grammar", Grammar(fields.guided_grammar)


def _schema(given: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    try:
        schema = from_json(given, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidRequestError(f"guided_json: expected JSON: {exc}", "guided_json") from None
    if not isinstance(schema, dict):
        raise InvalidRequestError("guided_json: expected a JSON schema that is an object", "guided_json")
    return schema
