"""/v1/files: what batches read and write."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from flashlet.serving.api.middleware import owner_of
from flashlet.serving.api.responses import error_responses, json_response, responses
from flashlet.serving.api.schema.files import UPLOAD_BODY, DeletedFile, FileList, FileObject
from flashlet.serving.api.upload import MAX_FILENAME, Upload, read_upload
from flashlet.serving.batches.batch_store import BatchStore

if TYPE_CHECKING:
    from flashlet.serving.batches.file_table import StoredFile
    from flashlet.serving.batches.storage import Storage

MAX_LIMIT = 10_000  # as OpenAI's
ERRORS = (400, 401, 404, 503)
CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    **error_responses(*ERRORS),
}


def files_router(store: BatchStore) -> APIRouter:
    """The endpoints for files."""
    router = APIRouter(tags=["files"])

    @router.post("/v1/files", responses=responses(FileObject), openapi_extra=UPLOAD_BODY)
    async def upload_file(request: Request) -> Response:
        """Store a file of JSON lines for a batch."""
        owner = owner_of(request)
        upload = await read_upload(request, store.config.max_file_bytes)
        try:
            file = await store.call(lambda storage: _save(storage, owner, upload, store.config.file_seconds))
        finally:
            await upload.file.close()
        return json_response(_file_object(file))

    @router.get("/v1/files", responses=responses(FileList, errors=ERRORS))
    async def list_files(
        request: Request,
        purpose: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = MAX_LIMIT,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        """List files."""
        owner = owner_of(request)
        page, more = await store.call(lambda storage: storage.files.page(owner, after, limit, order, purpose))
        return json_response(list_object([_file_object(file) for file in page], more))

    @router.get("/v1/files/{file_id}", responses=responses(FileObject, errors=ERRORS))
    async def retrieve_file(file_id: str, request: Request) -> Response:
        """Describe a file."""
        owner = owner_of(request)
        return json_response(
            _file_object(await store.call(lambda storage: storage.files.get(file_id, owner)))
        )

    @router.get("/v1/files/{file_id}/content", response_class=FileResponse, responses=CONTENT)
    async def file_content(file_id: str, request: Request) -> Response:
        """The bytes of a file."""
        owner = owner_of(request)
        file = await store.call(lambda storage: storage.files.get(file_id, owner))
        path = await store.call(lambda storage: storage.files.path(file_id))
        return FileResponse(path, media_type="application/octet-stream", filename=file.filename)

    @router.delete("/v1/files/{file_id}", responses=responses(DeletedFile, errors=ERRORS))
    async def delete_file(file_id: str, request: Request) -> Response:
        """Delete a file that no unfinished batch reads."""
        owner = owner_of(request)
        await store.call(lambda storage: storage.files.delete(file_id, owner))
        return json_response({"id": file_id, "object": "file", "deleted": True})

    return router


def list_object(data: list[dict[str, Any]], more: bool) -> dict[str, Any]:
    """A page of objects that have an id."""
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more}


def _save(storage: Storage, owner: str, upload: Upload, default_seconds: int) -> StoredFile:
    name = (upload.file.filename or "upload.jsonl")[-MAX_FILENAME:]
    with storage.files.writer() as (file_id, file):
        shutil.copyfileobj(upload.file.file, file)
    return storage.files.insert(file_id, owner, name, upload.purpose, upload.seconds or default_seconds)


def _file_object(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }
