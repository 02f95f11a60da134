"""GET /health and GET /version."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flashlet.serving.api.schema.base import AnswerModel


class Health(AnswerModel):
    """The server would serve a request now."""

    status: Literal["ok"]


class Version(AnswerModel):
    """What runs here."""

    name: Literal["flashlet"]
    version: str = Field(examples=["0.1.0"])
