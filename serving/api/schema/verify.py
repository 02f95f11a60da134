"""POST /v1/verify."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from flashlet.serving.api.schema.base import AnswerModel, WireModel

_EXAMPLE: dict[str, Any] = {
    "endpoint": "/v1/completions",
    "request": {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0},
    "answer": {
        "object": "text_completion",
        "choices": [{"index": 0, "text": " Paris, a city", "finish_reason": "length"}],
    },
}


class VerifyRequest(WireModel):
    """A request and the answer that it once got."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    request: dict[str, Any] = Field(description="The body; `stream` is ignored.")
    answer: dict[str, Any] = Field(description="The plain answer, or what a client made of the streamed one.")
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = Field(
        None, description="`x-flashlet-seed` of the answer, for a sampled one whose request had no seed."
    )


class FirstDifference(AnswerModel):
    """Where the replay left the recorded answer."""

    choice: int
    field: str = Field(examples=["token_ids", "message.content"])
    token_index: int | None = Field(description="Among the replay's tokens; null if that cannot be told.")
    character: int | None = Field(description="In the text of the field; null for `token_ids`.")
    expected: int | str | None = Field(description="As recorded: a token, or the text from there on.")
    got: int | str | None


class FingerprintCheck(AnswerModel):
    """The recorded `system_fingerprint` beside the server's."""

    match: bool
    recorded: str | None
    server: str
    differing: list[Literal["weights", "formats", "kernels", "template", "version"]]


class Verification(AnswerModel):
    """Whether the replay gave the same answer."""

    identical: bool
    first_difference: FirstDifference | None
    fingerprint: FingerprintCheck
