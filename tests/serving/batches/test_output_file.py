"""The output of `flashlet batch`: what is counted."""

from __future__ import annotations

import sys
from pathlib import Path

from flashlet.serving.batches.batch_output import answered
from flashlet.serving.batches.output_file import OutputFile

IDS = [f"id-{number}" for number in range(200)]


def num_calls_to_count(output: OutputFile) -> int:
    """Python calls that reading the count takes."""
    events: list[str] = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: events.append(event))
    try:
        assert output.num_failed >= 0
    finally:
        sys.setprofile(before)
    return events.count("call")


def test_failures_are_counted_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    output = OutputFile(path, IDS)
    few = num_calls_to_count(output)
    for number, custom_id in enumerate(IDS):
        output.add(custom_id, answered(custom_id, 400 if number % 4 == 0 else 200, "req", b"{}"))
    assert output.num_failed == 50 and num_calls_to_count(output) == few
    output.add(IDS[0], answered(IDS[0], 200, "req", b"{}"))
    assert output.num_failed == 49
    output.close()
    output = OutputFile(path, IDS)
    assert output.num_failed == 49 and len(output.answered) == 200
    output.close()
