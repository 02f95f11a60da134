"""The output of `flashlet batch`: answers appended as they come, so that a second run goes on where it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from flashlet.model.errors import FlashletError
from flashlet.serving.batches.batch_output import LINE_START, Answer


class OutputFileError(FlashletError):
    """The output file is not the one of an earlier run, or another run writes it."""


class OutputFile:
    """Answers by custom_id, in the order in which they came."""

    def __init__(self, path: Path, custom_ids: Collection[str]) -> None:
        """Open or make the file; an answer that was torn by a crash is cut off.

        Raises:
            OutputFileError: it holds something else than answers to `custom_ids`, or is in use.
        """
        self._path = path
        self.answered: dict[str, bool] = {}  # custom_id -> whether the request succeeded
        self.num_failed = 0  # requests that did not succeed
        self._file = path.open("ab+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(custom_ids)
        except BlockingIOError:
            self._file.close()
            raise OutputFileError(f"{path}: another run writes it") from None
        except OutputFileError:
            self._file.close()
            raise

    def add(self, custom_id: str, answer: Answer) -> None:
        """Append an answer."""
        self._file.write(answer.line + b"\n")
        self._file.flush()
        self._note(custom_id, answer.ok)

    def close(self) -> None:
        """Write everything to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _note(self, custom_id: str, ok: bool) -> None:
        self.num_failed += self.answered.get(custom_id, True) - ok
        self.answered[custom_id] = ok

    def _read(self, custom_ids: Collection[str]) -> None:
        """Note what is answered; leave the file at the end of a whole line."""
        self._file.seek(0)
        start = 0
        for number, data in enumerate(self._file, 1):
            fields = _decode(data)
            if fields is None:
                if data.endswith(b"\n") or not _starts_answer(data):
                    raise OutputFileError(f"{self._path}: line {number}: expected an answer of a batch")
                self._file.truncate(start)
                return
            if fields["custom_id"] not in custom_ids:
                raise OutputFileError(
                    f"{self._path}: line {number}: an answer to '{fields['custom_id']}', "
                    "for which the input does not ask"
                )
            response = fields["response"]
            self._note(fields["custom_id"], bool(response) and response["status_code"] == 200)
            start += len(data)
            if not data.endswith(b"\n"):
                self._file.write(b"\n")


def _starts_answer(data: bytes) -> bool:
    """Whether this can be the beginning of an answer."""
    return data.startswith(LINE_START) or LINE_START.startswith(data)


def _decode(data: bytes) -> dict[str, Any] | None:
    """An answer; None if it is not one."""
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if not isinstance(fields, dict) or not {"id", "custom_id", "response", "error"} <= fields.keys():
        return None
    return fields
