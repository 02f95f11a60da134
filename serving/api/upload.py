"""Multipart uploads: read within limits of size and time, without holding the file in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from flashlet.serving.api.body import BODY_TIMEOUT
from flashlet.serving.api.errors import BodyTimeoutError, BodyTooLargeError
from flashlet.serving.api.schema.files import MAX_SECONDS, MIN_SECONDS
from flashlet.serving.errors import InvalidRequestError, RequestError

FORM_BYTES = 64 << 10  # of everything in the form but the file
MAX_FILENAME = 255
_FIELDS = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that has arrived; whoever gets it closes `file`."""

    file: UploadFile
    purpose: str
    seconds: int | None  # until it expires, if the client chose


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """Read a form with one file of at most `max_bytes`; more than a megabyte of it goes to the disk.

    Raises:
        BodyTooLargeError: announced or actual size over the limit.
        BodyTimeoutError: the client stalls.
        InvalidRequestError: not the form that is expected.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequestError("body: expected multipart/form-data", code="invalid_form")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes + FORM_BYTES:
        raise BodyTooLargeError(f"file: expected at most {max_bytes} bytes, got a body of {length}")
    parser = MultiPartParser(
        request.headers, _limited(request, max_bytes + FORM_BYTES), max_files=1, max_fields=len(_FIELDS)
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequestError(f"body: {error.message}", code="invalid_form") from None
    fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
    file = form.get("file")
    if not isinstance(file, UploadFile):
        await form.close()
        raise InvalidRequestError("file: this field is required", "file", "missing_required_parameter")
    try:
        return _checked(file, fields, max_bytes)
    except RequestError:
        await form.close()
        raise


def _checked(file: UploadFile, fields: dict[str, str], max_bytes: int) -> Upload:
    """The upload, if its fields are as expected."""
    if unknown := sorted(fields.keys() - _FIELDS):
        raise InvalidRequestError(
            f"{unknown[0][:60]}: unknown or unsupported field", unknown[0][:60], "unknown_parameter"
        )
    purpose = fields.get("purpose")
    if purpose != "batch":
        raise InvalidRequestError(f"purpose: expected 'batch', got {str(purpose)[:60]!r}", "purpose")
    if (file.size or 0) > max_bytes:
        raise BodyTooLargeError(f"file: expected at most {max_bytes} bytes, got {file.size}")
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return Upload(file, purpose, None)
    if anchor != "created_at":
        raise InvalidRequestError("expires_after.anchor: expected 'created_at'", "expires_after.anchor")
    if not (seconds or "").isdecimal() or not MIN_SECONDS <= int(seconds or "") <= MAX_SECONDS:
        raise InvalidRequestError(
            f"expires_after.seconds: expected {MIN_SECONDS} to {MAX_SECONDS}, got {str(seconds)[:60]!r}",
            "expires_after.seconds",
        )
    return Upload(file, purpose, int(seconds or ""))


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Parts of the body as they come."""
    stream = request.stream().__aiter__()
    num_bytes = 0
    while True:
        try:
            part = await asyncio.wait_for(stream.__anext__(), BODY_TIMEOUT)
        except StopAsyncIteration:
            return
        except asyncio.TimeoutError:
            raise BodyTimeoutError(f"no part of the body arrived for {BODY_TIMEOUT:.0f} seconds") from None
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise BodyTooLargeError(f"body: expected at most {max_bytes} bytes, got more")
        yield part
