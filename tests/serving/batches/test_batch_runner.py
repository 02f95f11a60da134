"""The task that works off batches, and its end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flashlet.serving.batches.batch_runner import BatchRunner
from flashlet.serving.batches.batch_store import BatchStore
from flashlet.serving.batches.config import BatchConfig


@pytest.mark.parametrize("ticks", range(8))
def test_it_stops_while_something_changes(tmp_path: Path, ticks: int) -> None:
    """However many turns of the event loop lie between the change and the stop."""

    async def run() -> None:
        store = BatchStore(BatchConfig(tmp_path))
        await store.open()
        service = SimpleNamespace(metrics=SimpleNamespace(batch_lines_waiting=0))
        runner = BatchRunner(store, cast("Any", service), lambda: pytest.fail("there are no lines"))
        runner.start()
        await asyncio.sleep(0.05)  # the runner waits for something to do
        store.changed.set()
        for _ in range(ticks):
            await asyncio.sleep(0)
        await asyncio.wait_for(runner.stop(), 20)
        await store.close()

    asyncio.run(run())
