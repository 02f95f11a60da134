"""The event loop's side of the data folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from flashlet.serving.batches.config import BatchConfig
from flashlet.serving.errors import EngineStoppedError

if TYPE_CHECKING:
    from flashlet.serving.batches.storage import Storage

Result = TypeVar("Result")


class BatchStore:
    """Calls the storage in a thread of its own; opens it when it is first needed."""

    def __init__(self, config: BatchConfig) -> None:
        self.config = config
        self.changed = asyncio.Event()  # set by whoever gives the batch runner something to do
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._storage: Storage | None = None  # the thread's
        self._closed = False

    async def call(self, work: Callable[[Storage], Result]) -> Result:
        """Result of `work`. Raises DataFolderError if the folder cannot be used, and what `work` raises."""
        if self._closed:
            raise EngineStoppedError("the server is shutting down")
        opened = self._storage is not None
        result = await asyncio.get_running_loop().run_in_executor(self._thread, self._call, work)
        if not opened:
            self.changed.set()  # another server may have left batches
        return result

    async def close(self) -> None:
        """Finish the calls under way, and let go of the folder. Calling it twice is harmless."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    def _call(self, work: Callable[[Storage], Result]) -> Result:
        if self._storage is None:
            from flashlet.serving.batches.storage import Storage

            self._storage = Storage(self.config)
        return work(self._storage)

    def _close(self) -> None:
        if self._storage is not None:
            self._storage.close()
