"""Prompts in all their forms."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from flashlet.serving.api.schema.base import TokenIds, kind_of

MAX_PROMPTS = 2048


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, list):
        return kind_of(value[0], {str: "strings", int: "ids", list: "id_lists"}) if value else "strings"
    return "string" if isinstance(value, str) else None


_Strings = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
_Ids = Annotated[TokenIds, Field(min_length=1)]
_IdLists = Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[_Strings, Tag("strings")]
    | Annotated[_Ids, Tag("ids")]
    | Annotated[_IdLists, Tag("id_lists")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="Input should be text, a list of texts, token ids or a list of token id lists",
    ),
]


def prompt_list(prompt: Any) -> list[str | list[int]]:
    """A valid `Prompt` as a list, whatever form it came in."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)
