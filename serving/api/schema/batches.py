"""/v1/batches."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from flashlet.serving.api.schema.base import AnswerModel, WireModel
from flashlet.serving.api.schema.files import ExpiresAfter

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
Status = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class BatchRequest(WireModel):
    """A file of requests to run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "input_file_id": "file-65f0c1d2e3a4b5c6d7e8f901",
                    "endpoint": "/v1/chat/completions",
                    "completion_window": "24h",
                }
            ]
        }
    )

    input_file_id: str
    endpoint: Endpoint
    completion_window: Annotated[
        str,
        Field(
            pattern=r"^[1-9][0-9]{0,5}[smhd]$",
            description="Time for the whole batch, up to 30 days: a number of s, m, h or d.",
        ),
    ]
    metadata: Metadata | None = None
    output_expires_after: ExpiresAfter | None = None


class BatchProblem(AnswerModel):
    """Why the input is wrong; `line` counts from 1."""

    code: str = Field(examples=["duplicate_custom_id"])
    message: str
    param: str | None
    line: int | None


class BatchProblems(AnswerModel):
    """What is wrong with the input, at most the first hundred."""

    object: Literal["list"]
    data: list[BatchProblem]


class RequestCounts(AnswerModel):
    """Lines by state; those that were never run count only in `total`."""

    total: int
    completed: int
    failed: int


class BatchObject(AnswerModel):
    """One batch; times in seconds since 1970, null for what has not happened."""

    id: str = Field(examples=["batch_65f0c1d2e3a4b5c6d7e8f901"])
    object: Literal["batch"]
    endpoint: Endpoint
    errors: BatchProblems | None
    input_file_id: str
    completion_window: str = Field(examples=["24h"])
    status: Status
    output_file_id: str | None = Field(description="Answers of the lines that succeeded.")
    error_file_id: str | None = Field(description="Answers of the others.")
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(AnswerModel):
    """A page of batches, newest first; `last_id` is the `after` of the next one."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool
