"""The SQLite database of stored responses."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from flashlet.serving.data_folder import lock_folder, make_folder, open_database, transaction
from flashlet.serving.errors import DataFolderError, NotFoundError
from flashlet.serving.responses.config import ResponseConfig

SCHEMA_VERSION = 1
INTERRUPTED = {"code": "server_error", "message": "the server ended before the response was complete"}
_SCHEMA = """
CREATE TABLE responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    response BLOB NOT NULL,
    items BLOB NOT NULL,
    events BLOB
);
CREATE INDEX responses_by_creation ON responses (created_at);
CREATE INDEX responses_by_size ON responses (bytes);
CREATE INDEX open_responses ON responses (number) WHERE ended = 0;
"""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response, and what it went on from."""

    response: dict[str, Any]
    items: list[dict[str, Any]]  # input, that of earlier responses included, in order
    events: bytes | None = None  # of its stream, where that can be taken up again


class ResponseTable:
    """An open database. One process has it at a time, and one thread at a time calls it."""

    def __init__(self, config: ResponseConfig) -> None:
        """Raises DataFolderError if the folder cannot be used, or another server uses it."""
        self._config = config
        path: Any = ":memory:"
        try:
            with ExitStack() as opened:  # let go of, if a later step fails
                if config.folder is not None:
                    make_folder(config.folder)
                    opened.callback(os.close, lock_folder(config.folder / "responses.lock"))
                    path = config.folder / "responses.sqlite3"
                self._connection = open_database(path, _SCHEMA, SCHEMA_VERSION)
                opened.callback(self._connection.close)
                self._end_interrupted()
                self._opened = opened.pop_all()
        except (OSError, sqlite3.Error, DataFolderError) as error:
            raise DataFolderError(f"the data folder {config.folder} cannot be used: {error}") from error

    def put(self, owner: str, stored: StoredResponse) -> None:
        """Keep a response, in place of an earlier state of it; delete what is too old or too much."""
        response = stored.response
        blobs = msgspec.json.encode(response), msgspec.json.encode(stored.items), stored.events
        size = sum(len(blob) for blob in blobs if blob is not None)
        with transaction(self._connection):
            self._delete("id = ?", response["id"])
            self._connection.execute(
                "INSERT INTO responses (id, owner, created_at, ended, bytes, response, items, events)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (response["id"], owner, response["created_at"], _has_ended(response), size, *blobs),
            )
            self._delete("created_at < ?", int(time.time()) - self._config.seconds)
            while self._is_over_limits():
                self._delete("number = (SELECT min(number) FROM responses)")

    def get(self, response_id: str, owner: str) -> StoredResponse:
        """The response. Raises NotFoundError if it does not exist or belongs to another."""
        row = self._connection.execute(
            "SELECT response, items, events FROM responses WHERE id = ? AND owner = ? AND created_at >= ?",
            (response_id, owner, int(time.time()) - self._config.seconds),
        ).fetchone()
        if row is None:
            raise NotFoundError(f"no such response: '{response_id[:200]}'")
        return StoredResponse(
            msgspec.json.decode(row["response"]), msgspec.json.decode(row["items"]), row["events"]
        )

    def delete(self, response_id: str, owner: str) -> None:
        """Delete a response. Raises NotFoundError as `get`."""
        self.get(response_id, owner)
        self._delete("id = ?", response_id)

    def close(self) -> None:
        """Write everything to the disk and let go of the folder."""
        self._opened.close()

    def _delete(self, where: str, *values: str | int) -> None:
        self._connection.execute(f"DELETE FROM responses WHERE {where}", values)

    def _is_over_limits(self) -> bool:
        count, size = self._connection.execute(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM responses"
        ).fetchone()
        return bool(count > self._config.max_responses or size > self._config.max_bytes)

    def _end_interrupted(self) -> None:
        """What ran when the last server ended has failed."""
        rows = self._connection.execute("SELECT id, response FROM responses WHERE ended = 0").fetchall()
        for row in rows:
            response = msgspec.json.decode(row["response"]) | {"status": "failed", "error": INTERRUPTED}
            self._connection.execute(
                "UPDATE responses SET ended = 1, response = ? WHERE id = ?",
                (msgspec.json.encode(response), row["id"]),
            )


def _has_ended(response: dict[str, Any]) -> bool:
    return response["status"] not in {"queued", "in_progress"}
