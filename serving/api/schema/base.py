"""What every wire model shares: strict types, no unknown fields, no silent conversion."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

MAX_TOKEN_ID = 2**31 - 1

TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
TruncatePromptTokens = Annotated[
    Annotated[int, Field(ge=1, le=2**31 - 1)] | None,
    Field(description="Keep only so many of the prompt's last tokens; `usage` counts those."),
]
Unsupported = Annotated[None, Field(description="Not supported: anything but null is refused.")]


class WireModel(BaseModel):
    """A request body, or part of one: a wrong type, a NaN or an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class AnswerModel(BaseModel):
    """An answer, for the OpenAPI document; what is sent is encoded from plain dictionaries."""

    model_config = ConfigDict(defer_build=True)  # most servers are never asked for the document


def kind_of(value: Any, kinds: dict[type, str]) -> str | None:
    """Tag of `value` for a union that is told apart by type; booleans are not integers."""
    return kinds.get(type(value))
