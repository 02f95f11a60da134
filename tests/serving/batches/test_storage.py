"""The data folder: what expires, what a crash leaves behind, and who may open it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flashlet.serving.batches.batch_input import INPUT_LOST, InputLine, InputLostError
from flashlet.serving.batches.batch_output import answered
from flashlet.serving.batches.batch_table import Batch
from flashlet.serving.batches.config import BatchConfig
from flashlet.serving.batches.file_table import StoredFile
from flashlet.serving.batches.storage import Storage
from flashlet.serving.errors import DataFolderError, NotFoundError

OK = answered("a", 200, "req", b'{"x": 1}')
BAD = answered("b", 400, "req", b'{"error": {}}')


@pytest.fixture
def open_storage(tmp_path: Path) -> Iterator[Callable[[], Storage]]:
    """Opens the folder anew, after closing it."""
    opened: list[Storage] = []

    def open_storage() -> Storage:
        while opened:
            opened.pop().close()
        opened.append(Storage(BatchConfig(tmp_path / "data")))
        return opened[-1]

    yield open_storage
    while opened:
        opened.pop().close()


def add_file(storage: Storage, seconds: int = 100) -> StoredFile:
    with storage.files.writer() as (file_id, file):
        file.write(b"0123456789")
    return storage.files.insert(file_id, "me", "in.jsonl", "batch", seconds)


def running_batch(storage: Storage, num_lines: int, seconds: int = 100) -> Batch:
    file = add_file(storage)
    batch = storage.batches.create("me", "/v1/completions", file.id, ("100s", seconds), 100, None)
    lines = [InputLine(number, f"id-{number}", number - 1, 1) for number in range(1, num_lines + 1)]
    storage.batches.start(batch, lines)
    return storage.batches.get(batch.id, "me")


def test_expired_files_go_unless_a_batch_reads_them(open_storage: Callable[[], Storage]) -> None:
    storage = open_storage()
    old, used, kept = add_file(storage, 0), add_file(storage, 0), add_file(storage)
    storage.batches.create("me", "/v1/completions", used.id, ("1h", 3600), 100, None)
    storage.files.delete_expired()
    with pytest.raises(NotFoundError):
        storage.files.get(old.id, "me")
    assert not storage.files.path(old.id).exists()
    assert storage.files.get(used.id, "me") == used and storage.files.get(kept.id, "me") == kept


def test_bytes_without_a_row_are_removed(open_storage: Callable[[], Storage]) -> None:
    storage = open_storage()
    file = add_file(storage)
    with storage.files.writer() as (stranger, data):
        data.write(b"x")
    with pytest.raises(ValueError), storage.files.writer() as (torn, data):
        raise ValueError
    assert not [path for path in storage.files.path(torn).parent.iterdir() if path.name.startswith(torn)]
    storage = open_storage()
    assert not storage.files.path(stranger).exists()
    assert storage.files.path(file.id).read_bytes() == b"0123456789"


def test_answers_count_once(open_storage: Callable[[], Storage]) -> None:
    storage = open_storage()
    batch = running_batch(storage, 3)
    first, second, third = storage.batches.pending(10, set())
    assert [line.data for line in (first, second, third)] == [b"0", b"1", b"2"]
    assert storage.batches.pending(1, {first.key}) == [second]
    storage.batches.answer([(first, OK), (second, BAD)])
    storage.batches.answer([(first, BAD), (second, OK)])
    storage = open_storage()
    assert storage.batches.pending(10, set()) == [third]
    batch = storage.batches.get(batch.id, "me")
    assert (batch.completed, batch.failed, batch.num_pending) == (1, 1, 1)


@pytest.mark.parametrize(
    ("answers", "cancel", "ended"), [(2, False, "completed"), (1, False, "expired"), (1, True, "cancelled")]
)
def test_how_a_batch_ends(
    open_storage: Callable[[], Storage], answers: int, cancel: bool, ended: str
) -> None:
    storage = open_storage()
    batch = running_batch(storage, 2)
    lines = storage.batches.pending(10, set())
    storage.batches.answer([*zip(lines, [OK, BAD], strict=True)][:answers])
    if cancel:
        assert storage.batches.cancel(batch.id, "me").status == "cancelling"
    assert storage.batches.end(batch) == ended
    batch = storage.batches.get(batch.id, "me")
    assert batch.status == ended and batch.output_file_id and batch.error_file_id
    assert bool(batch.finalizing_at) is not cancel
    assert storage.files.path(batch.output_file_id).read_bytes() == OK.line + b"\n"
    error = storage.files.path(batch.error_file_id).read_bytes()
    assert error == BAD.line + b"\n" if answers == 2 else f"batch_{ended}".encode() in error
    assert not storage.batches.unfinished() and not storage.batches.pending(10, set())


def test_a_folder_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Storage(BatchConfig(tmp_path / "data")).close()
    connection = sqlite3.connect(tmp_path / "data" / "flashlet.sqlite3")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DataFolderError, match="schema version 1 at most, got 99"):
        Storage(BatchConfig(tmp_path / "data"))


def test_nobody_else_reads_a_new_folder(tmp_path: Path) -> None:
    Storage(BatchConfig(tmp_path / "data")).close()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataFolderError, match="cannot be used"):
        Storage(BatchConfig(tmp_path / "file"))
    (tmp_path / "data" / "files").mkdir(parents=True)
    (tmp_path / "data" / "flashlet.sqlite3").write_bytes(b"no database" * 100)
    with pytest.raises(DataFolderError, match="not a database"):
        Storage(BatchConfig(tmp_path / "data"))


def test_a_folder_that_could_not_be_opened_is_let_go_of(tmp_path: Path) -> None:
    stranger = tmp_path / "files" / "stranger"
    stranger.mkdir(parents=True)  # which cannot be unlinked
    for _ in range(2):
        with pytest.raises(DataFolderError, match="cannot be used: .*stranger"):
            Storage(BatchConfig(tmp_path))
    stranger.rmdir()
    Storage(BatchConfig(tmp_path)).close()


@pytest.mark.parametrize("left", [None, b"01"])
def test_a_batch_whose_input_is_lost_fails(open_storage: Callable[[], Storage], left: bytes | None) -> None:
    storage = open_storage()
    lost, other = running_batch(storage, 3), running_batch(storage, 1)
    first = storage.batches.pending(1, set())[0]
    storage.batches.answer([(first, OK)])
    path = storage.files.path(lost.input_file_id)
    path.unlink() if left is None else path.write_bytes(left)
    with pytest.raises(InputLostError, match=lost.id) as error:
        storage.batches.pending(10, set())
    assert storage.batches.end(error.value.batch, INPUT_LOST) == "failed"
    assert [line.batch for line in storage.batches.pending(10, set())] == [other.number]
    lost = storage.batches.get(lost.id, "me")
    assert lost.failed_at and lost.errors and "input_file_lost" in lost.errors
    assert lost.output_file_id and storage.files.path(lost.output_file_id).read_bytes() == OK.line + b"\n"
    assert (
        lost.error_file_id and storage.files.path(lost.error_file_id).read_bytes().count(b"batch_failed") == 2
    )
