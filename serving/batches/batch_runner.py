"""Works off batches beside live requests: validates them, runs their lines, and writes their output."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flashlet.serving.batches.batch_input import INPUT_LOST, InputLostError, Problem, parse_line, read_input
from flashlet.serving.batches.batch_output import Answer
from flashlet.serving.batches.batch_store import BatchStore
from flashlet.serving.batches.line_runner import LineRunner
from flashlet.serving.errors import DataFolderError, RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from flashlet.serving.api.service import Service
    from flashlet.serving.batches.batch_table import Batch, PendingLine

POLL = 0.02  # seconds until a line is offered again where it would have had to wait
RETRY = 5.0  # seconds after a failure of the disk or the engine
IDLE = 60.0  # seconds: batches and files that expire are noticed at the latest then

logger = logging.getLogger(__name__)


class BatchRunner:
    """One task that decides, and one for each line that runs. Only this writes a batch's progress."""

    def __init__(self, store: BatchStore, service: Service, make_app: Callable[[], ASGIApp]) -> None:
        """`make_app` makes the application that answers lines; it is called when there is one."""
        self._store = store
        self._service = service
        self._make_app = make_app
        self._lines: LineRunner | None = None
        self._running: dict[tuple[int, int], tuple[asyncio.Task[None], int]] = {}  # and number of sequences
        self._answers: list[tuple[PendingLine, Answer]] = []  # not stored yet
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with the batches that an earlier run left unfinished."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End what runs, without an answer, and store the answers there are."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._cancel_lines(None)
        try:
            await self._store_answers()
        except Exception:
            logger.exception("the last answers are lost; their lines run again after the next start")

    async def _run(self) -> None:
        if not self._store.config.database.exists():
            await self._store.changed.wait()
        while True:
            self._store.changed.clear()
            try:
                delay = await self._turn()
            except DataFolderError as error:
                logger.warning("no batches are run: %s", error)
                await self._store.changed.wait()
                continue
            except Exception:
                logger.exception("batches: trying again in %g s", RETRY)
                await asyncio.sleep(RETRY)
                continue
            # Not wait_for(): before Python 3.12 it forgets a cancellation that comes together with the event.
            timer = asyncio.get_running_loop().call_later(delay, self._store.changed.set)
            try:
                await self._store.changed.wait()
            finally:
                timer.cancel()

    async def _turn(self) -> float:
        """Do what can be done; returns the seconds until something may have changed by itself."""
        await self._store_answers()
        await self._store.call(lambda storage: storage.files.delete_expired())
        unfinished = await self._store.call(lambda storage: storage.batches.unfinished())
        self._service.metrics.batch_lines_waiting = sum(batch.num_pending for batch in unfinished)
        for batch in unfinished:
            await self._advance(batch)
        if not unfinished:
            return IDLE
        return min(await self._feed(), max(0.0, min(batch.expires_at for batch in unfinished) - time.time()))

    async def _advance(self, batch: Batch) -> None:
        """Take a batch to its next status if it is time."""
        late = batch.expires_at <= time.time()
        if batch.status == "validating" and not late:
            await self._validate(batch)
        elif late or batch.status != "in_progress" or not batch.num_pending:
            await self._end(batch)

    async def _end(self, batch: Batch, problem: Problem | None = None) -> None:
        await self._cancel_lines(batch)
        await self._store_answers()
        status = await self._store.call(lambda storage: storage.batches.end(batch, problem))
        logger.info("batch %s: %s", batch.id, status)

    async def _validate(self, batch: Batch) -> None:
        config = self._store.config
        path = await self._store.call(lambda storage: storage.files.path(batch.input_file_id))
        try:
            lines, problems = await asyncio.to_thread(
                read_input, path, (batch.endpoint,), config.max_lines, config.max_line_bytes
            )
        except FileNotFoundError:
            lines, problems = [], [INPUT_LOST]
        if problems:
            await self._store.call(lambda storage: storage.batches.refuse(batch, problems))
        else:
            await self._store.call(lambda storage: storage.batches.start(batch, lines))
            self._store.changed.set()

    async def _feed(self) -> float:
        """Start lines while there is room for them; returns the seconds until it is worth another look."""
        try:
            engine = self._service.ready_model().engine_loop.engine
        except RequestError:
            return RETRY
        room = max(1, min(self._store.config.max_sequences, engine.config.max_sequences // 2))
        room -= sum(num_sequences for _, num_sequences in self._running.values())
        if room <= 0:
            return IDLE
        if engine.stats().waiting:  # a line would only make the queue longer
            return POLL
        taken = {*self._running, *(line.key for line, _ in self._answers)}
        try:
            pending = await self._store.call(lambda storage: storage.batches.pending(room, taken))
        except InputLostError as error:
            await self._end(error.batch, INPUT_LOST)
            return 0.0
        for line in pending:
            request = parse_line(line.data)
            num_sequences = request.num_sequences
            if num_sequences > room and self._running:
                break
            room -= num_sequences
            task = asyncio.create_task(self._run_line(line))
            task.add_done_callback(partial(self._line_ended, line))
            self._running[line.key] = task, num_sequences
        self._service.metrics.batch_lines_running = len(self._running)
        return IDLE

    async def _run_line(self, line: PendingLine) -> None:
        """Answer one line, if it can be now."""
        try:
            if self._lines is None:
                self._lines = LineRunner(self._make_app(), self._service.ready_model)
            answer = await self._lines.run(parse_line(line.data))
            if answer is None:
                await asyncio.sleep(POLL)
            else:
                self._answers.append((line, answer))
        except Exception:
            logger.exception("line %d of a batch failed; it is run again", line.number)
            await asyncio.sleep(RETRY)

    def _line_ended(self, line: PendingLine, task: asyncio.Task[None]) -> None:
        del self._running[line.key]
        self._store.changed.set()

    async def _cancel_lines(self, batch: Batch | None) -> None:
        """End the running lines of a batch, or of all, before the engine's next step."""
        tasks = [
            task
            for (number, _), (task, _) in self._running.items()
            if batch is None or number == batch.number
        ]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _store_answers(self) -> None:
        """Store the answers that have come. They stay here until that succeeded."""
        answers = self._answers[:]
        if answers:
            await self._store.call(lambda storage: storage.batches.answer(answers))
            del self._answers[: len(answers)]
            for _, answer in answers:
                self._service.metrics.batch_lines["completed" if answer.ok else "failed"] += 1
