"""The canary prompt: recorded once, compared at every later start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from flashlet.model.executor import Executor, ExecutorOptions, create_executor
from flashlet.model.fingerprint import Fingerprint, fingerprint_of
from flashlet.serving import canary
from flashlet.serving.canary import (
    STEPS,
    CanaryResult,
    canary_problem,
    read_record,
    record_key,
    record_path,
    run_canary,
)
from flashlet.serving.cli import app

OPTIONS = ExecutorOptions(kv_cache_bytes=1 << 20, threads=1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLET_CACHE", str(tmp_path))


@pytest.fixture
def executor(tiny_model_path: Path) -> Iterator[Executor]:
    executor = create_executor(tiny_model_path, OPTIONS)
    yield executor
    executor.close()


@pytest.fixture
def fingerprint(tiny_model_path: Path, executor: Executor) -> Fingerprint:
    return fingerprint_of(tiny_model_path, OPTIONS)


def plant(fingerprint: Fingerprint, **fields: object) -> None:
    path = record_path(fingerprint)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_first_start_records_and_the_second_compares(
    executor: Executor, fingerprint: Fingerprint, tmp_path: Path
) -> None:
    assert canary_problem(executor, OPTIONS, fingerprint) is None
    recorded = read_record(record_path(fingerprint))
    assert recorded is not None and len(recorded.tokens) == len(STEPS) and len(recorded.states) == 64
    assert [path.name for path in (tmp_path / "canary").iterdir()] == [record_path(fingerprint).name]
    assert canary_problem(executor, OPTIONS, fingerprint) is None


def test_every_executor_gives_the_same(tiny_model_path: Path, executor: Executor) -> None:
    result = run_canary(executor, OPTIONS)
    for options in (
        ExecutorOptions(backend="torch", kv_cache_bytes=1 << 20),
        ExecutorOptions(kv_cache_bytes=1 << 22, threads=2),
    ):
        other = create_executor(tiny_model_path, options)
        assert run_canary(other, options) == result
        other.close()


def test_a_mismatch_is_named(executor: Executor, fingerprint: Fingerprint) -> None:
    canary_problem(executor, OPTIONS, fingerprint)
    recorded = read_record(record_path(fingerprint))
    assert recorded is not None
    plant(fingerprint, states="0" * 64)
    problem = canary_problem(executor, OPTIONS, fingerprint)
    assert problem is not None and "hidden states" in problem and str(record_path(fingerprint)) in problem
    plant(fingerprint, tokens=[*recorded.tokens[:3], 0, *recorded.tokens[4:]])
    assert "token 3 differs" in (canary_problem(executor, OPTIONS, fingerprint) or "")
    record_path(fingerprint).unlink()  # the reset
    assert canary_problem(executor, OPTIONS, fingerprint) is None


def test_a_shipped_result_counts_from_the_first_start_on(
    executor: Executor, fingerprint: Fingerprint, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run_canary(executor, OPTIONS)
    assert result is not None
    shipped = {record_key(fingerprint): result}
    monkeypatch.setattr(canary, "shipped_records", lambda: shipped)
    assert canary_problem(executor, OPTIONS, fingerprint) is None
    assert not record_path(fingerprint).exists()
    shipped[record_key(fingerprint)] = CanaryResult(
        [*result.tokens[:2], 0, *result.tokens[3:]], result.states
    )
    problem = canary_problem(executor, OPTIONS, fingerprint)
    assert problem is not None and "token 2 differs" in problem and "sound machine" in problem
    record_path(fingerprint).parent.mkdir()
    record_path(fingerprint).write_bytes(msgspec.json.encode(result))  # what a faulty first start would leave
    assert canary_problem(executor, OPTIONS, fingerprint) == problem


def test_a_broken_record_is_written_again(executor: Executor, fingerprint: Fingerprint) -> None:
    path = record_path(fingerprint)
    path.parent.mkdir()
    path.write_text('{"tokens": [1')
    assert canary_problem(executor, OPTIONS, fingerprint) is None
    assert read_record(path) == run_canary(executor, OPTIONS)


def test_a_model_that_is_too_small_has_none(executor: Executor) -> None:
    assert run_canary(executor, ExecutorOptions(max_step_tokens=8)) is None


def test_a_new_version_must_give_the_same(fingerprint: Fingerprint, tiny_model_path: Path) -> None:
    newer = fingerprint_of(tiny_model_path, OPTIONS, template="other", version="99")
    assert newer != fingerprint and record_path(newer) == record_path(fingerprint)


def test_doctor_reports_a_mismatch(
    executor: Executor, fingerprint: Fingerprint, tiny_model_path: Path, tmp_path: Path
) -> None:
    def examine() -> tuple[int, str]:
        result = CliRunner().invoke(app, ["doctor", str(tiny_model_path), "--port", "0", "--json"])
        return result.exit_code, result.output

    assert "canary" not in examine()[1]
    assert not record_path(fingerprint).exists()
    canary_problem(executor, OPTIONS, fingerprint)
    assert examine()[0] == 0
    plant(fingerprint, states="0" * 64)
    code, output = examine()
    assert code == 1 and "canary prompt gave another result" in output
