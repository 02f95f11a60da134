"""The data folder: an SQLite database, and beside it the bytes of the files."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack

from flashlet.serving.batches.batch_table import BatchTable
from flashlet.serving.batches.config import BatchConfig
from flashlet.serving.batches.file_table import FileTable
from flashlet.serving.data_folder import lock_folder, make_folder, open_database
from flashlet.serving.errors import DataFolderError

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
);
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    completion_window TEXT NOT NULL,
    output_seconds INTEGER NOT NULL,
    metadata TEXT,
    status TEXT NOT NULL,
    errors TEXT,
    output_file_id TEXT,
    error_file_id TEXT,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    in_progress_at INTEGER,
    finalizing_at INTEGER,
    completed_at INTEGER,
    failed_at INTEGER,
    expired_at INTEGER,
    cancelling_at INTEGER,
    cancelled_at INTEGER
);
CREATE INDEX batches_by_status ON batches (status);
CREATE TABLE lines (
    batch INTEGER NOT NULL REFERENCES batches (number),
    line INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    result BLOB,
    PRIMARY KEY (batch, line)
);
CREATE INDEX pending_lines ON lines (batch, line) WHERE state = 'pending';
"""


class Storage:
    """An open data folder. One process has it at a time, and one thread at a time calls it."""

    def __init__(self, config: BatchConfig) -> None:
        """Raises DataFolderError if the folder cannot be used, or another server uses it."""
        folder = config.folder
        try:
            with ExitStack() as opened:  # let go of, if a later step fails
                make_folder(folder)
                make_folder(folder / "files")
                opened.callback(os.close, lock_folder(folder / "lock"))
                connection = open_database(config.database, _SCHEMA, SCHEMA_VERSION)
                opened.callback(connection.close)
                self.files = FileTable(connection, folder / "files")
                self.batches = BatchTable(connection, self.files)
                self.files.remove_strangers()
                self._opened = opened.pop_all()
        except (OSError, sqlite3.Error, DataFolderError) as error:
            raise DataFolderError(f"the data folder {folder} cannot be used: {error}") from error

    def close(self) -> None:
        """Write everything to the disk and let go of the folder."""
        self._opened.close()
