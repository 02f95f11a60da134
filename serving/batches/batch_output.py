"""The lines of a batch's output: each the answer to one line of the input."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import msgspec

LINE_START = b'{"id":"batch_req_'
_UNANSWERED = {
    "expired": "the batch expired before this line was run",
    "cancelled": "the batch was cancelled before this line was run",
    "failed": "the batch failed before this line was run",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What is written for one line; `ok`: the request succeeded."""

    ok: bool
    line: bytes


def answered(custom_id: str, status: int, request_id: str, body: bytes) -> Answer:
    """The answer from a response; `body` is JSON."""
    response = {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
    return Answer(status == 200, _encode(custom_id, response, None))


def unanswered(custom_id: str, ended: str) -> bytes:
    """What stands in the error file for a line that was not run. `ended`: expired, cancelled or failed."""
    return _encode(custom_id, None, {"code": f"batch_{ended}", "message": _UNANSWERED[ended]})


def _encode(custom_id: str, response: dict[str, object] | None, error: dict[str, str] | None) -> bytes:
    fields = {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(fields)
