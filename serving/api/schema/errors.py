"""Errors on the wire."""

from __future__ import annotations

from pydantic import Field

from flashlet.serving.api.schema.base import AnswerModel


class ErrorDetail(AnswerModel):
    """What went wrong."""

    message: str = Field(examples=["temperature: expected a number less than or equal to 2, got 3"])
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="The field at fault.", examples=["temperature"])
    code: str | None = Field(description="Stable name of the error.", examples=["invalid_value"])


class ErrorBody(AnswerModel):
    """Body of every answer that is not a success."""

    error: ErrorDetail
