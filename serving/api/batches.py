"""/v1/batches: files of requests, run beside the live ones."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from flashlet.serving.api.body import json_route
from flashlet.serving.api.files import ERRORS, list_object
from flashlet.serving.api.middleware import owner_of
from flashlet.serving.api.responses import json_response, responses
from flashlet.serving.api.schema.batches import BatchList, BatchObject, BatchRequest
from flashlet.serving.api.schema.files import MAX_SECONDS
from flashlet.serving.batches.batch_store import BatchStore
from flashlet.serving.errors import InvalidRequestError

if TYPE_CHECKING:
    from flashlet.serving.batches.batch_table import Batch

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}  # seconds
HIDDEN = {"number", "owner", "output_seconds", "total", "completed", "failed"}


def batches_router(store: BatchStore, max_body_bytes: int) -> APIRouter:
    """The endpoints for batches."""
    router = APIRouter(tags=["batches"])
    json_router = APIRouter(route_class=json_route(max_body_bytes), tags=["batches"])

    @json_router.post("/v1/batches", responses=responses(BatchObject))
    async def create_batch(body: BatchRequest, request: Request) -> Response:
        """Run the requests of a file."""
        owner, window = owner_of(request), (body.completion_window, _seconds(body.completion_window))
        expiry = body.output_expires_after
        output_seconds = expiry.seconds if expiry else store.config.file_seconds
        batch = await store.call(
            lambda storage: storage.batches.create(
                owner, body.endpoint, body.input_file_id, window, output_seconds, body.metadata
            )
        )
        store.changed.set()
        return json_response(_batch_object(batch))

    @router.get("/v1/batches", responses=responses(BatchList, errors=ERRORS))
    async def list_batches(
        request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
    ) -> Response:
        """List batches, newest first."""
        owner = owner_of(request)
        page, more = await store.call(lambda storage: storage.batches.page(owner, after, limit))
        return json_response(list_object([_batch_object(batch) for batch in page], more))

    @router.get("/v1/batches/{batch_id}", responses=responses(BatchObject, errors=ERRORS))
    async def retrieve_batch(batch_id: str, request: Request) -> Response:
        """Describe a batch and its progress."""
        owner = owner_of(request)
        batch = await store.call(lambda storage: storage.batches.get(batch_id, owner))
        return json_response(_batch_object(batch))

    @router.post("/v1/batches/{batch_id}/cancel", responses=responses(BatchObject, errors=ERRORS))
    async def cancel_batch(batch_id: str, request: Request) -> Response:
        """Stop a batch; the answers that it has are kept."""
        owner = owner_of(request)
        batch = await store.call(lambda storage: storage.batches.cancel(batch_id, owner))
        store.changed.set()
        return json_response(_batch_object(batch))

    router.include_router(json_router)
    return router


def _seconds(window: str) -> int:
    """Length of a completion window, whose form is checked. Raises InvalidRequestError if it is too long."""
    seconds = int(window[:-1]) * UNITS[window[-1]]
    if seconds > MAX_SECONDS:
        raise InvalidRequestError(
            f"completion_window: expected at most 30d, got '{window}'", "completion_window"
        )
    return seconds


def _batch_object(batch: Batch) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(batch).items() if name not in HIDDEN}
    errors = None if batch.errors is None else msgspec.json.decode(batch.errors)
    counts = {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
    return fields | {
        "object": "batch",
        "errors": None if errors is None else {"object": "list", "data": errors},
        "metadata": None if batch.metadata is None else msgspec.json.decode(batch.metadata),
        "request_counts": counts,
    }
