"""What databases in the data folder share: each has one process at a time, and one thread calls it."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashlet.serving.errors import DataFolderError


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All statements of the block take effect, or none."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def make_folder(path: Path) -> None:
    """Make the folder if it is not there; nobody else may read what clients said."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def lock_folder(path: Path) -> int:
    """Descriptor of the lock file, held; the lock ends with the process, however that ends.

    Raises DataFolderError if another process has it, and OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        reason = (
            "another server uses it; choose one with --data" if isinstance(error, BlockingIOError) else error
        )
        raise DataFolderError(str(reason)) from error
    return descriptor


def open_database(path: Path | str, schema: str, version: int) -> sqlite3.Connection:
    """Open a database; a new one gets the tables of `schema`. Raises DataFolderError and sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # what was committed survives a power cut, too
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > version:
        connection.close()
        raise DataFolderError(f"expected schema version {version} at most, got {found}")
    if found == 0:
        with transaction(connection):
            for statement in schema.strip().split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version}")
    return connection
