"""The lines of a batch's input: each one request."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from flashlet.serving.batches.batch_table import Batch

MAX_PROBLEMS = 100  # reported of one file
MAX_CUSTOM_ID = 512  # characters
FIELDS = {"custom_id", "method", "url", "body"}
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

_Fields = dict[str, msgspec.Raw]
_decode_fields = msgspec.json.Decoder(_Fields).decode


@dataclass(frozen=True, slots=True)
class InputLine:
    """One request; `start` and `length` say which bytes of the file it is."""

    number: int  # from 1, as editors count
    custom_id: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line, or the whole file if `line` is None, cannot be run."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


INPUT_LOST = Problem("input_file_lost", "the bytes of the input file are no longer there", "input_file_id")


@dataclass(frozen=True, slots=True)
class LineRequest:
    """What a line asks for; `body` is JSON."""

    custom_id: str
    url: str
    body: bytes

    @property
    def num_sequences(self) -> int:
        """About how many sequences the engine will run for it: prompts x n. Wrong bodies count as one."""
        fields = _decode_fields(self.body)
        prompt = _plain(fields.get("prompt", fields.get("input")))
        several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
        choices = _plain(fields.get("n"))
        return (len(prompt) if several else 1) * (choices if isinstance(choices, int) and choices > 0 else 1)


class InputLostError(Exception):
    """A line's bytes are gone from the disk."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(f"batch {batch.id}: the bytes of its input file are no longer there")
        self.batch = batch


class LineError(Exception):
    """A line that is no request; `problem` lacks the line's number."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, param)


def parse_line(data: bytes, endpoints: Collection[str] = ENDPOINTS) -> LineRequest:
    """Decode a line for one of `endpoints`; its body is checked when it runs. Raises LineError."""
    try:
        fields = _decode_fields(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise LineError("invalid_json_line", f"expected a JSON object: {error}") from None
    if unknown := sorted(fields.keys() - FIELDS):
        raise LineError("unknown_parameter", f"{unknown[0][:60]}: unknown field", unknown[0][:60])
    if missing := sorted(FIELDS - fields.keys()):
        raise LineError("missing_required_parameter", f"{missing[0]}: this field is required", missing[0])
    custom_id, method, url = (_plain(fields[name]) for name in ("custom_id", "method", "url"))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        expected = f"a string of 1 to {MAX_CUSTOM_ID} characters"
        raise LineError("invalid_custom_id", f"custom_id: expected {expected}", "custom_id")
    if method != "POST":
        raise LineError("invalid_method", f"method: expected POST, got {str(method)[:60]}", "method")
    if url not in endpoints:
        raise LineError("invalid_url", f"url: expected {' or '.join(endpoints)}, got {str(url)[:60]}", "url")
    body = bytes(fields["body"])
    try:
        fields = _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise LineError("invalid_request", "body: expected a JSON object", "body") from None
    for name in ("stream", "priority"):
        if _plain(fields.get(name)):
            raise LineError("invalid_request", f"body.{name}: not possible in a batch", f"body.{name}")
    return LineRequest(custom_id, url, body)


def read_input(
    path: Path, endpoints: Collection[str], max_lines: int, max_line_bytes: int
) -> tuple[list[InputLine], list[Problem]]:
    """All lines of a file and, at most MAX_PROBLEMS, what is wrong with them. Blank lines do not count."""
    lines: list[InputLine] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for number, start, data in _split(path, max_line_bytes):
        if len(lines) == max_lines:
            problems.append(Problem("too_many_lines", f"expected at most {max_lines} lines", None, number))
        if len(data) > max_line_bytes:
            message = f"expected at most {max_line_bytes} bytes in a line, got more"
            problems.append(Problem("line_too_long", message, None, number))
        if len(lines) == max_lines or len(data) > max_line_bytes or len(problems) == MAX_PROBLEMS:
            break
        try:
            request = parse_line(data, endpoints)
            if request.custom_id in seen:
                text = f"custom_id: '{request.custom_id[:60]}' stands in an earlier line, too"
                raise LineError("duplicate_custom_id", text, "custom_id")
        except LineError as error:
            problem = error.problem
            problems.append(Problem(problem.code, problem.message, problem.param, number))
            continue
        seen.add(request.custom_id)
        lines.append(InputLine(number, request.custom_id, start, len(data)))
    if not lines and not problems:
        problems.append(Problem("empty_file", "expected at least one line, got none"))
    return lines, problems


def _split(path: Path, max_bytes: int) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset and bytes of each line that is not blank; one over `max_bytes` is cut."""
    with path.open("rb") as file:
        start = number = 0
        while data := file.readline(max_bytes + 2):
            number += 1
            text = data.rstrip(b"\r\n")
            if text.strip():
                yield number, start, text
            start += len(data)


def _plain(value: msgspec.Raw | None) -> Any:
    """A small field, decoded; None for what is not JSON."""
    if value is None:
        return None
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
