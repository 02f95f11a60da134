"""Reading the input of a batch: what counts as a line, and what is reported about wrong ones."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from flashlet.serving.batches.batch_input import (
    MAX_PROBLEMS,
    LineError,
    LineRequest,
    parse_line,
    read_input,
)

LEGACY = ("/v1/completions",)


def test_offsets_lead_to_the_lines(tmp_path: Path, lines: SimpleNamespace) -> None:
    path = tmp_path / "in.jsonl"
    first, second, third = (lines.jsonl(lines.legacy(number, user="é")) for number in range(3))
    path.write_bytes(b"\n" + first[:-1] + b"\r\n" + b"  \n\n" + second + third[:-1])
    found, problems = read_input(path, LEGACY, 10, 1000)
    assert not problems
    assert [line.number for line in found] == [2, 5, 6]
    data = path.read_bytes()
    assert [parse_line(data[line.start : line.start + line.length]).custom_id for line in found] == [
        "line-0",
        "line-1",
        "line-2",
    ]


def test_limits(tmp_path: Path, lines: SimpleNamespace) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines.jsonl(*(lines.legacy(number) for number in range(4))))
    longest = len(lines.jsonl(lines.legacy(0))) - 1
    assert [problem.code for problem in read_input(path, LEGACY, 3, longest)[1]] == ["too_many_lines"]
    assert not read_input(path, LEGACY, 4, longest)[1]
    (problem,) = read_input(path, LEGACY, 4, longest - 1)[1]
    assert (problem.code, problem.line) == ("line_too_long", 1)
    path.write_bytes(b"{\n" * 1000)
    assert len(read_input(path, LEGACY, 2000, 100)[1]) == MAX_PROBLEMS


@pytest.mark.parametrize("data", [b"\xff", b'{"custom_id": "\xff"}', b"[]", b"null", b"{} {}", b"\x00"])
def test_bytes_that_are_no_json_object(data: bytes) -> None:
    with pytest.raises(LineError):
        parse_line(data)


@pytest.mark.parametrize(
    ("body", "number"),
    [
        (b'{"prompt": "a"}', 1),
        (b'{"prompt": ["a", "b"], "n": 3}', 6),
        (b'{"prompt": [1, 2, 3]}', 1),
        (b'{"prompt": [[1], [2]]}', 2),
        (b'{"input": ["a", "b", "c"]}', 3),
        (b'{"messages": [], "n": 4}', 4),
        (b'{"n": "many", "prompt": []}', 1),
    ],
)
def test_number_of_sequences(body: bytes, number: int) -> None:
    assert LineRequest("a", "/v1/completions", body).num_sequences == number
