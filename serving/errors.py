"""Errors of the serving layer; serving/api/errors.py alone maps them to HTTP statuses.

FlashletError (flashlet.model.errors)
└── RequestError              the caller's request cannot be served
    ├── InvalidRequestError   malformed or unsupported; names the parameter
    │   ├── ContextLengthError    prompt (and answer) longer than the model's context or the KV pool
    │   └── GrammarError          what the answer must match cannot be compiled, or followed within limits
    ├── NotFoundError         no stored object with this id, or not for this key
    ├── DataFolderError       the server cannot use its data folder
    ├── QueueFullError        the bounded queue is full: try again later
    ├── DeadlineError         a time limit of the request is out of reach, or has passed
    ├── EngineStoppedError    shutting down: no new requests
    ├── CanaryError           the canary prompt gave other numbers than before: answers could be wrong
    └── EngineFailedError     the executor failed; the request ended through no fault of its own
        └── EngineDeadError       so often that no request will be served any more
"""

from __future__ import annotations

from flashlet.model.errors import FlashletError


class RequestError(FlashletError):
    """A request that cannot be served."""


class InvalidRequestError(RequestError):
    """The request is malformed or asks for something unsupported."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidRequestError):
    """The prompt does not fit; the message gives its length and the limit in tokens."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class GrammarError(InvalidRequestError):
    """What the answer must match is malformed, unsupported or contradictory, or goes over a limit."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param=param, code="invalid_grammar")


class NotFoundError(RequestError):
    """Nothing is stored under this id, or it belongs to another key."""


class DataFolderError(RequestError):
    """The data folder cannot be used; the message says why."""


class QueueFullError(RequestError):
    """The waiting queue is at its limit; `retry_after` is an estimate in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(RequestError):
    """A time limit of the request cannot be kept, or has passed with nothing to show."""

    def __init__(self, message: str, param: str, code: str, retry_after: float) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.retry_after = retry_after


class CanaryError(RequestError):
    """The model gave other numbers than it once did; the message says where they are recorded."""


class EngineStoppedError(RequestError):
    """The engine no longer accepts requests."""


class EngineFailedError(RequestError):
    """The executor raised; every running request ends with this."""


class EngineDeadError(EngineFailedError):
    """The executor failed so often that the engine has given up; only a restart helps."""
