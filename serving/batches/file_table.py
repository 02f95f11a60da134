"""Files: their rows in the database, and their bytes in a folder under their id."""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from flashlet.serving.batches.sql import UNFINISHED, Order, select_page
from flashlet.serving.errors import InvalidRequestError, NotFoundError

_PART = ".part"  # end of the name while a file is written


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file; times in seconds since 1970."""

    number: int  # in order of creation
    id: str
    owner: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    expires_at: int


class FileTable:
    """Files of all owners. Bytes are on the disk before their row is: no crash leaves a row without them."""

    def __init__(self, connection: sqlite3.Connection, folder: Path) -> None:
        self._connection = connection
        self._folder = folder

    @contextmanager
    def writer(self) -> Iterator[tuple[str, BinaryIO]]:
        """A new id and where to write its bytes; `insert` then makes the file known."""
        file_id = f"file-{secrets.token_hex(12)}"
        path = self.path(file_id)
        part = path.with_name(path.name + _PART)
        try:
            with part.open("wb") as file:
                yield file_id, file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(self._folder)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def insert(self, file_id: str, owner: str, filename: str, purpose: str, seconds: int) -> StoredFile:
        """Make written bytes known as a file."""
        now = int(time.time())
        self._connection.execute(
            "INSERT INTO files (id, owner, filename, purpose, bytes, created_at, expires_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (file_id, owner, filename, purpose, self.path(file_id).stat().st_size, now, now + seconds),
        )
        return self.get(file_id, owner)

    def get(self, file_id: str, owner: str) -> StoredFile:
        """The file. Raises NotFoundError if it does not exist or belongs to another."""
        row = self._connection.execute(
            "SELECT * FROM files WHERE id = ? AND owner = ?", (file_id, owner)
        ).fetchone()
        if row is None:
            raise NotFoundError(f"no such file: '{file_id[:200]}'")
        return StoredFile(**dict(row))

    def path(self, file_id: str) -> Path:
        """Where the bytes of a known file are."""
        return self._folder / file_id

    def page(
        self, owner: str, after: str | None, limit: int, order: Order, purpose: str | None
    ) -> tuple[list[StoredFile], bool]:
        """A page of files, beginning behind the file `after`, and whether there are more."""
        where, values = "owner = ?", [owner]
        if purpose is not None:
            where += " AND purpose = ?"
            values.append(purpose)
        rows, more = select_page(self._connection, "files", where, values, after, limit, order)
        return [StoredFile(**dict(row)) for row in rows], more

    def delete(self, file_id: str, owner: str) -> None:
        """Delete a file. Raises NotFoundError, or InvalidRequestError while a batch reads it."""
        self.get(file_id, owner)
        batch = self._connection.execute(
            f"SELECT id FROM batches WHERE input_file_id = ? AND {UNFINISHED}", (file_id,)
        ).fetchone()
        if batch is not None:
            raise InvalidRequestError(
                f"the file is the input of the unfinished batch '{batch['id']}'", "file_id", "file_in_use"
            )
        self._remove(file_id)

    def delete_expired(self) -> None:
        """Delete the files whose time is over, but not those that a batch reads."""
        expired = self._connection.execute(
            "SELECT id FROM files WHERE expires_at <= ?"
            f" AND id NOT IN (SELECT input_file_id FROM batches WHERE {UNFINISHED})",
            (int(time.time()),),
        ).fetchall()
        for row in expired:
            self._remove(row["id"])

    def remove_strangers(self) -> None:
        """Delete bytes that never became a file, because the server ended between the two."""
        known = {row["id"] for row in self._connection.execute("SELECT id FROM files")}
        for path in self._folder.iterdir():
            if path.name not in known:
                path.unlink()

    def _remove(self, file_id: str) -> None:
        self._connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
