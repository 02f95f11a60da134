"""Which requests are attempts at the same thing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from flashlet.serving.api.body import JSONRequest
from flashlet.serving.api.middleware import owner_of
from flashlet.serving.errors import InvalidRequestError

MAX_KEY_CHARACTERS = 255
_RETRY_COUNT = "x-stainless-retry-count"  # of the OpenAI and Anthropic SDKs; 0 in a first attempt


@dataclass(frozen=True, slots=True)
class Attempt:
    """One of the requests with which a client tries to get one answer."""

    owner: str  # of the API key; empty where none is asked for
    path: str
    digest: bytes  # of the body
    idempotency_key: str | None
    is_retry: bool  # it says so itself

    @classmethod
    def of(cls, request: JSONRequest) -> Attempt:
        """Read a request. Raises InvalidRequestError for an Idempotency-Key that is none."""
        key = request.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= MAX_KEY_CHARACTERS:
            raise InvalidRequestError(
                f"Idempotency-Key: expected 1 to {MAX_KEY_CHARACTERS} characters, got {len(key)}",
                "Idempotency-Key",
            )
        count = request.headers.get(_RETRY_COUNT, "")
        return cls(
            owner=owner_of(request),
            path=request.url.path,
            digest=hashlib.blake2b(request.raw, digest_size=16).digest(),
            idempotency_key=key,
            is_retry=count.isdecimal() and int(count[:9]) > 0,
        )

    @property
    def what(self) -> tuple[str, str, bytes]:
        """The same for all that want the same answer, genuinely separate requests included."""
        return self.owner, self.path, self.digest
