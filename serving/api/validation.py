"""From pydantic's list of errors to the one that the client reads: field, expected, got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

from flashlet.serving.errors import InvalidRequestError

_SHOWN = 60  # characters of the offending value that an error message repeats


def first_problem(exc: RequestValidationError) -> InvalidRequestError:
    """Describe the first error of a body that did not validate."""
    error = exc.errors()[0]
    path = [*error["loc"][1:]] if error["loc"][0] == "query" else _path(error, exc.body)
    param = _dotted(path) or None
    kind, message = error["type"], str(error["msg"])
    if kind == "missing":
        return InvalidRequestError(f"{param}: this field is required", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return InvalidRequestError(f"{param}: unknown or unsupported field", param, "unknown_parameter")
    if kind == "none_required":
        return InvalidRequestError(f"{param}: not supported by this server", param, "unsupported_parameter")
    expected = message.replace("Input should be", "expected", 1)
    wrong_value = kind.startswith(
        ("greater", "less", "finite", "literal", "string_too", "string_pattern", "too_")
    )
    return InvalidRequestError(
        f"{param or 'body'}: {expected}, got {_shown(error['input'])}",
        param,
        "invalid_value" if wrong_value else "invalid_type",
    )


def _path(error: Mapping[str, Any], body: Any) -> list[str | int]:
    """Where the error is: pydantic's location without the names of union branches."""
    location = [part for part in error["loc"][1:] if part != "[key]"]
    path: list[str | int] = []
    value = body
    for number, part in enumerate(location, 1):
        last = number == len(location)
        if isinstance(value, dict) and (part in value or (last and error["type"] == "missing")):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path.append(part)
    return path


def _dotted(path: Sequence[str | int]) -> str:
    """Write a path as messages[0].content."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")[:200]


def _shown(value: Any) -> str:
    """A short form of what the client sent."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) > 10**_SHOWN:
        return "a number of more than 60 digits"
    text = repr(value[: _SHOWN + 1]) if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN + 2 else text[:_SHOWN] + "…'"
