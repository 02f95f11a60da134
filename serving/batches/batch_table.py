"""Batches and their lines in the database."""

from __future__ import annotations

import itertools
import secrets
import sqlite3
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass

import msgspec

from flashlet.serving.batches.batch_input import InputLine, InputLostError, Problem
from flashlet.serving.batches.batch_output import Answer, unanswered
from flashlet.serving.batches.file_table import FileTable
from flashlet.serving.batches.sql import UNFINISHED, select_page
from flashlet.serving.data_folder import transaction
from flashlet.serving.errors import InvalidRequestError, NotFoundError

ENDED = ("failed", "completed", "expired", "cancelled")
OUTPUT_PURPOSE = "batch_output"


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch; times in seconds since 1970."""

    number: int  # in order of creation
    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    output_seconds: int  # how long its output files are kept
    metadata: str | None  # JSON
    status: str
    errors: str | None  # JSON: a list of problems
    output_file_id: str | None
    error_file_id: str | None
    total: int
    completed: int
    failed: int
    created_at: int
    expires_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None

    @property
    def num_pending(self) -> int:
        """Lines without an answer."""
        return self.total - self.completed - self.failed


@dataclass(frozen=True, slots=True)
class PendingLine:
    """A line to run: its key, and its bytes."""

    batch: int
    number: int
    owner: str
    data: bytes

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from every other line."""
        return self.batch, self.number


class BatchTable:
    """Batches of all owners.

    validating -> in_progress -> finalizing -> completed | expired; validating | in_progress -> failed; any of
    the first three -> cancelling -> cancelled. A line is pending until its answer is stored; answers move to
    the output files, and the lines are gone, in the transaction that ends the batch.
    """

    def __init__(self, connection: sqlite3.Connection, files: FileTable) -> None:
        self._connection = connection
        self._files = files

    def create(
        self,
        owner: str,
        endpoint: str,
        input_file_id: str,
        window: tuple[str, int],
        output_seconds: int,
        metadata: dict[str, str] | None,
    ) -> Batch:
        """A new batch; `window` is what the client wrote, and its seconds.

        Raises NotFoundError or InvalidRequestError for the file.
        """
        purpose = self._files.get(input_file_id, owner).purpose
        if purpose != "batch":
            raise InvalidRequestError(
                f"input_file_id: expected a file with the purpose 'batch', got '{purpose}'", "input_file_id"
            )
        batch_id, now = f"batch_{secrets.token_hex(12)}", int(time.time())
        self._connection.execute(
            "INSERT INTO batches (id, owner, endpoint, input_file_id, completion_window, output_seconds,"
            " metadata, status, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'validating', ?, ?)",
            (
                batch_id, owner, endpoint, input_file_id, window[0], output_seconds,
                None if metadata is None else msgspec.json.encode(metadata).decode(), now, now + window[1],
            ),
        )  # fmt: skip
        return self.get(batch_id, owner)

    def get(self, batch_id: str, owner: str) -> Batch:
        """The batch. Raises NotFoundError if it does not exist or belongs to another."""
        row = self._connection.execute(
            "SELECT * FROM batches WHERE id = ? AND owner = ?", (batch_id, owner)
        ).fetchone()
        if row is None:
            raise NotFoundError(f"no such batch: '{batch_id[:200]}'")
        return Batch(**dict(row))

    def page(self, owner: str, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """A page of batches, newest first, and whether there are more."""
        rows, more = select_page(self._connection, "batches", "owner = ?", [owner], after, limit, "desc")
        return [Batch(**dict(row)) for row in rows], more

    def unfinished(self) -> list[Batch]:
        """All batches that have not ended, in order of creation."""
        rows = self._connection.execute(f"SELECT * FROM batches WHERE {UNFINISHED} ORDER BY number")
        return [Batch(**dict(row)) for row in rows]

    def cancel(self, batch_id: str, owner: str) -> Batch:
        """Ask for the end. Raises NotFoundError, or InvalidRequestError if it has ended."""
        batch = self.get(batch_id, owner)
        if batch.status in ENDED:
            raise InvalidRequestError(f"the batch has ended already: its status is '{batch.status}'")
        if batch.status != "cancelling":
            self._set_status(batch.number, "cancelling")
        return self.get(batch_id, owner)

    def start(self, batch: Batch, lines: Sequence[InputLine]) -> None:
        """Store the lines of a valid input; nothing happens if the batch was cancelled meanwhile."""
        with transaction(self._connection):
            if self._status(batch.number) == "validating":
                self._connection.executemany(
                    "INSERT INTO lines (batch, line, custom_id, start, length) VALUES (?, ?, ?, ?, ?)",
                    ((batch.number, line.number, line.custom_id, line.start, line.length) for line in lines),
                )
                self._connection.execute(
                    "UPDATE batches SET total = ? WHERE number = ?", (len(lines), batch.number)
                )
                self._set_status(batch.number, "in_progress")

    def refuse(self, batch: Batch, problems: Iterable[Problem]) -> None:
        """End a batch whose input is wrong."""
        with transaction(self._connection):
            if self._status(batch.number) == "validating":
                self._set_errors(batch, problems)
                self._set_status(batch.number, "failed")

    def pending(self, limit: int, taken: Collection[tuple[int, int]]) -> list[PendingLine]:
        """Up to `limit` lines to run, oldest batch first, without those `taken`.

        Raises InputLostError for a batch that has to fail.
        """
        rows = self._connection.execute(
            "SELECT lines.*, batches.id AS batch_id, input_file_id, owner"
            " FROM lines JOIN batches ON batches.number = lines.batch"
            " WHERE state = 'pending' AND status = 'in_progress' ORDER BY batch, line LIMIT ?",
            (limit + len(taken),),
        )
        chosen = [row for row in rows if (row["batch"], row["line"]) not in taken][:limit]
        return [self._read(row) for row in chosen]

    def answer(self, answers: Iterable[tuple[PendingLine, Answer]]) -> None:
        """Store answers; all of them, or none."""
        with transaction(self._connection):
            for line, answer in answers:
                state = "completed" if answer.ok else "failed"
                done = self._connection.execute(
                    "UPDATE lines SET state = ?, result = ?"
                    " WHERE batch = ? AND line = ? AND state = 'pending'",
                    (state, answer.line, line.batch, line.number),
                )
                self._connection.execute(
                    f"UPDATE batches SET {state} = {state} + ? WHERE number = ?", (done.rowcount, line.batch)
                )

    def end(self, batch: Batch, problem: Problem | None = None) -> str:
        """Write the output files of a batch of which no line runs; returns its last status.

        `problem`: why no more lines can be run.
        """
        if self._status(batch.number) == "in_progress" and problem is None:
            self._set_status(batch.number, "finalizing")
        pending = "SELECT count(*) FROM lines WHERE batch = ? AND state = 'pending'"
        (num_pending,) = self._connection.execute(pending, (batch.number,)).fetchone()
        ended = "cancelled" if self._status(batch.number) == "cancelling" else "completed"
        if ended == "completed" and (num_pending or batch.status == "validating"):
            ended = "expired" if problem is None else "failed"
        files = {
            "output_file_id": self._write(batch, "state = 'completed'", ended),
            "error_file_id": self._write(batch, "state != 'completed'", ended),
        }
        with transaction(self._connection):
            for column, file_id in files.items():
                if file_id is not None:
                    name = f"{batch.id}_{column.removesuffix('_file_id')}.jsonl"
                    self._files.insert(file_id, batch.owner, name, OUTPUT_PURPOSE, batch.output_seconds)
                    self._connection.execute(
                        f"UPDATE batches SET {column} = ? WHERE number = ?", (file_id, batch.number)
                    )
            if problem is not None and ended == "failed":
                self._set_errors(batch, [problem])
            self._connection.execute("DELETE FROM lines WHERE batch = ?", (batch.number,))
            self._set_status(batch.number, ended)
        return ended

    def _write(self, batch: Batch, which: str, ended: str) -> str | None:
        """Id of a new file with the lines' answers; None if there are none."""
        query = f"SELECT custom_id, result FROM lines WHERE batch = ? AND {which} ORDER BY line"
        rows = self._connection.execute(query, (batch.number,))
        first = rows.fetchone()
        if first is None:
            return None
        with self._files.writer() as (file_id, file):
            for row in itertools.chain([first], rows):
                file.write((row["result"] or unanswered(row["custom_id"], ended)) + b"\n")
        return file_id

    def _read(self, row: sqlite3.Row) -> PendingLine:
        try:
            with self._files.path(row["input_file_id"]).open("rb") as file:
                file.seek(row["start"])
                data = file.read(row["length"])
        except FileNotFoundError:
            data = b""
        if len(data) < row["length"]:
            raise InputLostError(self.get(row["batch_id"], row["owner"]))
        return PendingLine(row["batch"], row["line"], row["owner"], data)

    def _status(self, number: int) -> str:
        (status,) = self._connection.execute(
            "SELECT status FROM batches WHERE number = ?", (number,)
        ).fetchone()
        return str(status)

    def _set_errors(self, batch: Batch, problems: Iterable[Problem]) -> None:
        errors = msgspec.json.encode([asdict(problem) for problem in problems]).decode()
        self._connection.execute("UPDATE batches SET errors = ? WHERE number = ?", (errors, batch.number))

    def _set_status(self, number: int, status: str) -> None:
        """Every status but the first has the time of its beginning."""
        self._connection.execute(
            f"UPDATE batches SET status = ?, {status}_at = ? WHERE number = ?",
            (status, int(time.time()), number),
        )
