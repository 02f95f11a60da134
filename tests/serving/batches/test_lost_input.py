"""A batch whose input vanishes from the data folder of a running server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.serving.batches.conftest import ServerProcess

LONG = {"max_tokens": 400, "ignore_eos": True}


def test_a_batch_whose_input_is_lost_fails_alone(
    start: Callable[..., ServerProcess], lines: SimpleNamespace, tmp_path: Path
) -> None:
    server = start()
    content = lines.jsonl(lines.legacy(0), *(lines.legacy(number, **LONG) for number in range(1, 80)))
    running = server.submit(content)
    server.wait(running, lambda batch: bool(batch.request_counts and batch.request_counts.completed))
    unread = server.client.files.create(file=("in.jsonl", content), purpose="batch").id
    for file_id in (running.input_file_id, unread):
        (tmp_path / "data" / "files" / file_id).unlink()
    validating = server.client.batches.create(
        input_file_id=unread, endpoint="/v1/completions", completion_window="24h"
    )
    assert server.wait(server.submit(lines.jsonl(lines.legacy(0)))).status == "completed"
    for batch in (running, validating):
        done = server.wait(batch)
        assert done.status == "failed" and done.errors and done.errors.data
        (problem,) = done.errors.data
        assert (problem.code, problem.param) == ("input_file_lost", "input_file_id")
    done = server.wait(running)
    answers, errors = server.output(done.output_file_id), server.output(done.error_file_id)
    assert answers[0]["custom_id"] == "line-0" and len(answers) + len(errors) == 80
    assert {item["error"]["code"] for item in errors} == {"batch_failed"}
