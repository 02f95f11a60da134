"""Stored responses: owners, limits, and what a crash leaves."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from flashlet.serving.errors import DataFolderError, NotFoundError
from flashlet.serving.responses.config import ResponseConfig
from flashlet.serving.responses.response_table import ResponseTable, StoredResponse


def response(response_id: str, status: str = "completed", **fields: Any) -> StoredResponse:
    body = {"id": response_id, "status": status, "created_at": int(time.time()), "error": None, **fields}
    return StoredResponse(body, [{"id": "msg_1"}], b"event: x\n\n")


def test_it_comes_back_to_its_owner(tmp_path: Path) -> None:
    for folder in (tmp_path / "new", None):
        table = ResponseTable(ResponseConfig(folder))
        table.put("one", response("a", "queued"))
        table.put("one", response("a"))
        assert table.get("a", "one") == response("a", created_at=table.get("a", "one").response["created_at"])
        for action in (table.get, table.delete):
            with pytest.raises(NotFoundError, match="'a'"):
                action("a", "two")
        table.delete("a", "one")
        with pytest.raises(NotFoundError):
            table.get("a", "one")
        table.close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_the_oldest_go(tmp_path: Path) -> None:
    def kept(table: ResponseTable, *ids: str) -> str:
        found = ""
        for response_id in ids:
            try:
                found += table.get(response_id, "one").response["id"]
            except NotFoundError:
                found += "-"
        table.close()
        return found

    table = ResponseTable(ResponseConfig(max_responses=2))
    for response_id in "abc":
        table.put("one", response(response_id))
    assert kept(table, *"abc") == "-bc"
    table = ResponseTable(ResponseConfig(max_bytes=1000))
    for response_id in "abc":
        table.put("one", response(response_id, text="x" * 300))
    assert kept(table, *"abc") == "-bc"
    table = ResponseTable(ResponseConfig(seconds=100))
    table.put("one", response("a", created_at=int(time.time()) - 200))
    table.put("one", response("b"))
    assert kept(table, *"ab") == "-b"
    table = ResponseTable(ResponseConfig(max_bytes=100))
    table.put("one", response("a", text="x" * 300))
    assert kept(table, "a") == "-"


def test_what_a_crash_interrupted_has_failed(tmp_path: Path) -> None:
    table = ResponseTable(ResponseConfig(tmp_path))
    for response_id, status in (("a", "queued"), ("b", "in_progress"), ("c", "completed")):
        table.put("one", response(response_id, status))
    with pytest.raises(DataFolderError, match="^the data folder [^ ]+ cannot be used: another server"):
        ResponseTable(ResponseConfig(tmp_path))
    table.close()
    table = ResponseTable(ResponseConfig(tmp_path))
    for response_id in "ab":
        found = table.get(response_id, "one").response
        assert found["status"] == "failed" and found["error"]["code"] == "server_error"
    assert table.get("c", "one").response["status"] == "completed"
    table.close()


def test_a_folder_that_could_not_be_opened_is_let_go_of(tmp_path: Path) -> None:
    table = ResponseTable(ResponseConfig(tmp_path))
    table.put("one", response("a", "queued"))
    table.close()
    database = sqlite3.connect(tmp_path / "responses.sqlite3")
    database.execute(
        "CREATE TRIGGER broken BEFORE UPDATE ON responses BEGIN SELECT RAISE(ABORT, 'planted'); END"
    )
    for _ in range(2):
        with pytest.raises(DataFolderError, match="cannot be used: planted"):
            ResponseTable(ResponseConfig(tmp_path))
    database.execute("DROP TRIGGER broken")
    database.close()
    ResponseTable(ResponseConfig(tmp_path)).close()
