"""/v1/files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from flashlet.serving.api.schema.base import AnswerModel, WireModel

MIN_SECONDS, MAX_SECONDS = 3600, 30 * 24 * 3600


class ExpiresAfter(WireModel):
    """When a file is deleted."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_SECONDS, le=MAX_SECONDS)]


class FileObject(AnswerModel):
    """One stored file."""

    id: str = Field(examples=["file-65f0c1d2e3a4b5c6d7e8f901"])
    object: Literal["file"]
    bytes: int = Field(examples=[1230])
    created_at: int
    expires_at: int
    filename: str = Field(examples=["requests.jsonl"])
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class FileList(AnswerModel):
    """A page of files; `last_id` is the `after` of the next one."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(AnswerModel):
    """What is left of a file."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON lines."},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_SECONDS,
                            "maximum": MAX_SECONDS,
                        },
                    },
                }
            }
        },
    }
}
