"""The event loop's side of the data folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from flashlet.serving.batches.config import BatchConfig
from flashlet.serving.storage_thread import StorageThread

if TYPE_CHECKING:
    from flashlet.serving.batches.storage import Storage

Result = TypeVar("Result")


class BatchStore(StorageThread["Storage"]):
    """Files and batches, for the endpoints and for the batch runner."""

    def __init__(self, config: BatchConfig) -> None:
        super().__init__("batches", self._open)
        self.config = config
        self.changed = asyncio.Event()  # set by whoever gives the batch runner something to do

    async def call(self, work: Callable[[Storage], Result]) -> Result:
        """Result of `work`. Raises DataFolderError if the folder cannot be used, and what `work` raises."""
        opened = self.opened
        result = await super().call(work)
        if not opened:
            self.changed.set()  # another server may have left batches
        return result

    def _open(self) -> Storage:
        from flashlet.serving.batches.storage import Storage

        return Storage(self.config)
