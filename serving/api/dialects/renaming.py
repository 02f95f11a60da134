"""Errors about the fields of a translated request, told in the words of the client's dialect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flashlet.model.errors import ChatTemplateError
from flashlet.serving.errors import InvalidRequestError


@contextmanager
def fields_renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Rename the fields in InvalidRequestError. `names`: beginnings of paths in a ChatRequest, such as
    `messages[2].tool_calls[0].function`, to what stands there in the dialect; the longest one counts.
    """
    try:
        yield
    except ChatTemplateError as exc:
        raise InvalidRequestError(
            str(exc), names.get("messages", "messages"), "invalid_chat_template_input"
        ) from exc
    except InvalidRequestError as exc:
        if exc.param is not None:
            old, new = exc.param, _renamed(exc.param, names)
            message = str(exc)
            exc.args = (new + message.removeprefix(old) if message.startswith(old) else message,)
            exc.param = new
        raise


def _renamed(path: str, names: Mapping[str, str]) -> str:
    for old in sorted(names, key=len, reverse=True):
        if path.startswith(old) and path[len(old) : len(old) + 1] in {"", ".", "["}:
            return names[old] + path[len(old) :]
    return path
