"""`flashlet batch`: answers, errors, exit codes, and going on after an interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flashlet.serving.cli import app


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def run(files: tuple[Path, Path], model: Path) -> Result:
    arguments = ["batch", *files, "--model", model, "--threads", "1"]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def answers(path: Path) -> dict[str, dict[str, Any]]:
    """Answers by custom_id, of which each stands there once."""
    found = [json.loads(text) for text in path.read_text().splitlines()]
    by_id = {answer["custom_id"]: answer for answer in found}
    assert len(by_id) == len(found)
    return by_id


def test_every_line_gets_its_answer(
    files: tuple[Path, Path], tiny_model_path: Path, lines: SimpleNamespace
) -> None:
    requests = [
        lines.legacy(0), lines.chat(1, n=2), lines.legacy(2, top_p=7), lines.legacy(3, model="other"),
        lines.legacy(4, max_ttft_ms=1e-9),
    ]  # fmt: skip
    files[0].write_bytes(lines.jsonl(*requests))
    result = run(files, tiny_model_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("5 lines answered: 3 failed; ")
    found = answers(files[1])
    statuses = {name: answer["response"]["status_code"] for name, answer in found.items()}
    assert statuses == {"line-0": 200, "line-1": 200, "line-2": 400, "line-3": 404, "line-4": 503}
    assert len(found["line-1"]["response"]["body"]["choices"]) == 2
    assert found["line-2"]["response"]["body"]["error"]["param"] == "top_p"


def test_a_torn_answer_is_made_again(
    files: tuple[Path, Path], tiny_model_path: Path, lines: SimpleNamespace
) -> None:
    files[0].write_bytes(lines.jsonl(*(lines.legacy(number) for number in range(6))))
    assert run(files, tiny_model_path).exit_code == 0
    whole = files[1].read_bytes()
    texts = {name: answer["response"]["body"]["choices"] for name, answer in answers(files[1]).items()}
    kept = whole.splitlines(keepends=True)[:3]
    for torn in (b"".join(kept)[:-1], b"".join(kept)[:-20], b"".join(kept) + b'{"id', b""):
        files[1].write_bytes(torn)
        result = run(files, tiny_model_path)
        assert result.exit_code == 0 and "0 failed" in result.stderr
        assert {name: a["response"]["body"]["choices"] for name, a in answers(files[1]).items()} == texts
    result = run(files, tiny_model_path)
    assert "6 lines answered, 6 of them earlier: 0 failed" in result.stderr


def test_failures_of_an_earlier_run_count(
    files: tuple[Path, Path], tiny_model_path: Path, lines: SimpleNamespace
) -> None:
    files[0].write_bytes(lines.jsonl(lines.legacy(0, top_p=7)))
    assert run(files, tiny_model_path).exit_code == 1
    assert run(files, tiny_model_path).exit_code == 1


@pytest.mark.parametrize("content", [b"precious notes", b"precious notes\n", b'{"custom_id": "line-0"}\n'])
def test_a_file_of_something_else_is_left_alone(
    files: tuple[Path, Path], tiny_model_path: Path, lines: SimpleNamespace, content: bytes
) -> None:
    files[0].write_bytes(lines.jsonl(lines.legacy(0)))
    files[1].write_bytes(content)
    result = run(files, tiny_model_path)
    assert result.exit_code == 1 and result.stderr.startswith("error: ") and "line 1" in result.stderr
    assert files[1].read_bytes() == content


def test_the_output_of_another_input_is_left_alone(
    files: tuple[Path, Path], tiny_model_path: Path, lines: SimpleNamespace
) -> None:
    files[0].write_bytes(lines.jsonl(lines.legacy(0)))
    assert run(files, tiny_model_path).exit_code == 0
    files[0].write_bytes(lines.jsonl(lines.legacy(1)))
    result = run(files, tiny_model_path)
    assert result.exit_code == 1 and "'line-0', for which the input does not ask" in result.stderr


def test_wrong_lines_are_named_before_anything_runs(
    files: tuple[Path, Path], tiny_model_path: Path, lines: SimpleNamespace
) -> None:
    files[0].write_bytes(lines.jsonl(lines.legacy(0), lines.legacy(0)) + b"{\n" * 8)
    result = run(files, tiny_model_path)
    assert result.exit_code == 1
    assert "line 2: custom_id: 'line-0' stands in an earlier line" in result.stderr
    assert "; and 4 more" in result.stderr and result.stderr.count("\n") == 1
    assert not files[1].exists()


def test_interrupted_it_goes_on_later(
    files: tuple[Path, Path], tiny_model_path: Path, lines: SimpleNamespace
) -> None:
    # Enough of them that a busy machine is not done before the signal comes.
    requests = [lines.legacy(number, max_tokens=100 if number else 1) for number in range(400)]
    files[0].write_bytes(lines.jsonl(*requests))
    command = [sys.executable, "-m", "flashlet.serving.cli", "batch", *map(str, files)]
    process = subprocess.Popen(
        [*command, "--model", str(tiny_model_path), "--parallel", "2"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (files[1].exists() and files[1].stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == ""
    assert 0 < len(answers(files[1])) < 400
    result = run(files, tiny_model_path)
    assert result.exit_code == 0 and "of them earlier: 0 failed" in result.stderr
    assert len(answers(files[1])) == 400
