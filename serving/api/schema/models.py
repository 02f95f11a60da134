"""GET /v1/models and /v1/models/{model}."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flashlet.serving.api.schema.base import AnswerModel


class ModelCard(AnswerModel):
    """One served model."""

    id: str = Field(examples=["smollm2-135m-instruct"])
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None = Field(description="Context length in tokens; null while the model loads.")


class ModelList(AnswerModel):
    """All served models."""

    object: Literal["list"]
    data: list[ModelCard]
