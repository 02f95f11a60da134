"""What the tables share: pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal

from flashlet.serving.errors import InvalidRequestError

Order = Literal["asc", "desc"]
UNFINISHED = "status IN ('validating', 'in_progress', 'finalizing', 'cancelling')"  # batches


def select_page(
    connection: sqlite3.Connection,
    table: str,
    where: str,
    values: Sequence[str],
    after: str | None,
    limit: int,
    order: Order,
) -> tuple[list[sqlite3.Row], bool]:
    """Rows of `table` by number, at most `limit` behind the one with the id `after`; whether there are more.

    Raises InvalidRequestError if `after` is none of them.
    """
    bounds: list[str | int] = [*values]
    if after is not None:
        row = connection.execute(
            f"SELECT number FROM {table} WHERE {where} AND id = ?", [*values, after]
        ).fetchone()
        if row is None:
            raise InvalidRequestError(f"after: expected an id of this list, got '{after[:200]}'", "after")
        where += f" AND number {'>' if order == 'asc' else '<'} ?"
        bounds.append(row["number"])
    rows = connection.execute(
        f"SELECT * FROM {table} WHERE {where} ORDER BY number {order} LIMIT ?", [*bounds, limit + 1]
    ).fetchall()
    return rows[:limit], len(rows) > limit
