"""Runs the lines of batches: each is a request to the application, in this process and without a socket."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from flashlet.serving.batches.batch_input import LineRequest
from flashlet.serving.batches.batch_output import Answer, answered
from flashlet.serving.errors import RequestError

if TYPE_CHECKING:
    import httpx
    from starlette.types import ASGIApp

PRIORITY = 2**31 - 1  # of batch lines: the largest that the endpoints take, so live requests come first
GENERATING = {"/v1/chat/completions", "/v1/completions"}
ATTEMPTS = 2  # if the engine fails: it may have been another sequence that made it fail

logger = logging.getLogger(__name__)


class LineRunner:
    """Answers lines through `app`, which asks for no key."""

    def __init__(self, app: ASGIApp, check_ready: Callable[[], object], priority: int = PRIORITY) -> None:
        """`check_ready` raises RequestError while no request would be served."""
        import httpx

        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://batch", timeout=None)
        self._priority = priority
        self.check_ready = check_ready

    async def run(self, request: LineRequest) -> Answer | None:
        """The answer; None if the line was put off and should be run again in a while.

        Cancelling the task that awaits this ends the request before the engine's next step.
        """
        body = _with_priority(request.body, self._priority) if request.url in GENERATING else request.body
        for _ in range(ATTEMPTS):
            response = await self._client.post(request.url, content=body)
            if response.status_code != 500:
                break
        is_busy = response.status_code in {429, 503} and not _missed_deadline(response)
        if is_busy or not self._ready():
            return None
        if response.status_code == 500:
            logger.error("a batch line failed: %s", response.text)
        request_id = response.headers["x-request-id"]
        return answered(request.custom_id, response.status_code, request_id, response.content)

    def _ready(self) -> bool:
        try:
            self.check_ready()
        except RequestError:
            return False
        return True


def _missed_deadline(response: httpx.Response) -> bool:
    """Whether a time limit of the line itself is out of reach: asking again would not end."""
    code: str = msgspec.json.decode(response.content)["error"]["code"]
    return code.startswith("deadline_")


def _with_priority(body: bytes, priority: int) -> bytes:
    """The body of a request that runs with this priority."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return msgspec.json.encode({**fields, "priority": priority})
