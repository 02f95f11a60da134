"""The event loop's side of what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

from flashlet.serving.errors import EngineStoppedError


class Closable(Protocol):
    """Something open."""

    def close(self) -> None:
        """Let go of it."""


Result = TypeVar("Result")
StorageT = TypeVar("StorageT", bound=Closable)


class StorageThread(Generic[StorageT]):
    """Calls a storage in a thread of its own; opens it when it is first needed."""

    def __init__(self, name: str, open_storage: Callable[[], StorageT]) -> None:
        self.opened = False
        self._open_storage = open_storage
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._storage: StorageT | None = None  # the thread's
        self._closed = False

    async def call(self, work: Callable[[StorageT], Result]) -> Result:
        """Result of `work`. Raises DataFolderError if the folder cannot be used, and what `work` raises."""
        if self._closed:
            raise EngineStoppedError("the server is shutting down")
        result = await asyncio.get_running_loop().run_in_executor(self._thread, self._call, work)
        self.opened = True
        return result

    async def open(self) -> None:
        """Open the storage unless it is. Raises as `call`."""
        if not self.opened:
            await self.call(lambda _: None)

    async def close(self) -> None:
        """Finish the calls under way, and let go of the folder. Calling it twice is harmless."""
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    def _call(self, work: Callable[[StorageT], Result]) -> Result:
        if self._storage is None:
            self._storage = self._open_storage()
        return work(self._storage)

    def _close(self) -> None:
        if self._storage is not None:
            self._storage.close()
