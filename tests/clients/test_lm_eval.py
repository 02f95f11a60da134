"""lm-evaluation-harness: log-likelihoods by local-completions, answers by both interfaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-eval runs in ./scripts/test-clients")

DATA = Path(__file__).parent / "data"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks, with the place of their questions filled in."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for task in DATA.glob("*.yaml"):
        shutil.copy(task, folder)
        with (folder / task.name).open("a") as file:
            file.write(f"dataset_kwargs:\n  data_files: {DATA / 'questions.jsonl'}\n")
    return folder


def evaluate(tasks: Path, task: str, interface: str, arguments: str, *options: str) -> tuple[Any, list[Any]]:
    """Run lm-eval; returns its results and its samples."""
    out = tasks.parent / f"out-{len(list(tasks.parent.iterdir()))}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", interface, "--model_args", arguments]
    command += ["--tasks", task, "--include_path", str(tasks), "--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tasks.parent / "hf")}
    result = subprocess.run(
        [*command, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    results = json.loads(next(out.rglob("results_*.json")).read_text())["results"][task]
    samples = next(out.rglob("samples_*.jsonl")).read_text().splitlines()
    return results, [json.loads(sample) for sample in samples]


def test_log_likelihoods_do_not_depend_on_the_batch(tasks: Path, url: str, model: str) -> None:
    arguments = f"model={model},base_url={url}/v1/completions,tokenizer_backend=remote"
    results, alone = evaluate(tasks, "sky", "local-completions", arguments, "--batch_size", "1")
    _, together = evaluate(tasks, "sky", "local-completions", arguments, "--batch_size", "16")
    answers = [sample["resps"] for sample in alone]
    assert answers == [sample["resps"] for sample in together]
    assert len(answers) == 6 and all(float(answer[0][0][0]) < 0 for answer in answers)
    assert results["acc,none"] >= 0.5


def test_text_prompts_without_a_tokenizer(tasks: Path, url: str, model: str) -> None:
    arguments = f"model={model},base_url={url}/v1/completions,tokenizer_backend=none,num_concurrent=4"
    _, samples = evaluate(tasks, "words", "local-completions", arguments)
    assert all(sample["resps"][0][0].strip() for sample in samples)


def test_chat(tasks: Path, url: str, model: str) -> None:
    arguments = f"model={model},base_url={url}/v1/chat/completions"
    _, samples = evaluate(tasks, "words", "local-chat-completions", arguments, "--apply_chat_template")
    assert all(sample["resps"][0][0].strip() for sample in samples)
