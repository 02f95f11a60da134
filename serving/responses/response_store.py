"""The event loop's side of stored responses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from flashlet.serving.responses.config import ResponseConfig
from flashlet.serving.storage_thread import StorageThread

if TYPE_CHECKING:
    from flashlet.serving.api.dialects.response_run import BackgroundRun
    from flashlet.serving.responses.response_table import ResponseTable, StoredResponse


class ResponseStore(StorageThread["ResponseTable"]):
    """Responses that are kept, and those that run in the background or whose end could not be stored."""

    def __init__(self, config: ResponseConfig) -> None:
        super().__init__("responses", self._open)
        self.config = config
        self.running: dict[str, BackgroundRun] = {}  # by id; the endpoints are the only writers

    async def get(self, response_id: str, owner: str) -> StoredResponse:
        """The response as it is now. Raises NotFoundError if it is not there, or belongs to another."""
        stored = await self.call(lambda table: table.get(response_id, owner))
        if run := self.running.get(response_id):
            stored.response.update(run.run.response)
        return stored

    async def close(self) -> None:
        """Wait for what runs in the background, which the engine has ended, and let go of the database."""
        if self.running:
            await asyncio.wait({run.task for run in self.running.values()})
        await super().close()

    def _open(self) -> ResponseTable:
        from flashlet.serving.responses.response_table import ResponseTable

        return ResponseTable(self.config)
