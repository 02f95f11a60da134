"""Scores as lm-evaluation-harness asks for them, against fp32 weights and floats computed directly."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flashlet.model.executor import ExecutorOptions
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.step import SequenceSlice, Step
from flashlet.model.tokenizer import load_tokenizer

PROSE = Path(__file__).parents[2] / "data" / "prose.txt"
LENGTHS = [5, 33, 12, 64, 7, 21, 40, 3, 18, 32, 9, 50, 15, 27, 31, 2]  # tokens of the prompts
MEAN_KL = 0.0019  # nats, int8 against fp32 on this text: benchmarks/quality.py
# A small change d of the log probabilities has KL = E[d^2] / 2, so |d| is sqrt(2 KL) on average at most. The
# expectation is over the model's own tokens; a text has rarer ones, which move more: twice that.
MEAN_CHANGE = 2 * math.sqrt(2 * MEAN_KL)


@pytest.fixture(scope="module")
def prompts(default_model_path: Path) -> list[list[int]]:
    """Pieces of a text."""
    token_ids = load_tokenizer(default_model_path).encode(PROSE.read_text())
    starts = [sum(LENGTHS[:number]) for number in range(len(LENGTHS))]
    return [token_ids[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]


@pytest.fixture(scope="module")
def url(default_model_path: Path) -> Iterator[str]:
    """A server with the default model."""
    command = [sys.executable, "-m", "flashlet.serving.cli", "serve", str(default_model_path), "--port", "0"]
    process = subprocess.Popen([*command, "--threads", "2"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    match = re.search(r"http://\S+", process.stdout.readline())
    assert match is not None
    yield match[0]
    process.terminate()
    process.communicate(timeout=30)


@pytest.fixture(scope="module")
def scores(url: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """The legacy logprobs of each prompt, from requests of one prompt."""
    return [score(url, [prompt])[0] for prompt in prompts]


def score(url: str, prompts: list[list[int]]) -> list[dict[str, Any]]:
    """One request of lm-eval's local-completions; floats stay the text that was sent."""
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    choices = json.loads(response.text, parse_float=str)["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(prompts)))
    return [choice["logprobs"] for choice in choices]


def slices(prompts: list[list[int]], block_size: int) -> Iterator[SequenceSlice]:
    """Each prompt as a sequence with blocks of its own, all its tokens scored."""
    first_block = 0
    for prompt in prompts:
        blocks = range(first_block, first_block - (-len(prompt) // block_size))
        yield SequenceSlice(prompt[:-1], 0, blocks, logprob_targets=prompt[1:])
        first_block = blocks.stop


def test_shape(scores: list[dict[str, Any]], prompts: list[list[int]]) -> None:
    for prompt, lists in zip(prompts, scores, strict=True):
        values, top = lists["token_logprobs"], lists["top_logprobs"]
        assert len(lists["tokens"]) == len(values) == len(top) == len(prompt) + 1
        assert values[0] is None and top[0] is None
        for token, value, alternatives in list(zip(lists["tokens"], values, top, strict=True))[1:]:
            assert alternatives[token] == value
            assert float(value) <= max(map(float, alternatives.values()))


@pytest.mark.parametrize("batch", [2, 16])
def test_batches_change_nothing(
    url: str, prompts: list[list[int]], scores: list[dict[str, Any]], batch: int
) -> None:
    for start in range(0, len(prompts), batch):
        assert score(url, prompts[start : start + batch]) == scores[start : start + batch]


def test_close_to_fp32(
    default_model_path: Path, prompts: list[list[int]], scores: list[dict[str, Any]]
) -> None:
    options = ExecutorOptions(weights="fp32", kv_dtype="fp32", kv_cache_bytes=1 << 26, threads=2)
    reference = TorchExecutor(default_model_path, options)
    expected = reference.execute(Step(list(slices(prompts, reference.block_size))))
    reference.close()
    changes = [
        float(value) - target.logprob
        for lists, output in zip(scores, expected, strict=True)
        for value, target in zip(lists["token_logprobs"][1:-1], output.target_logprobs, strict=True)
    ]
    assert sum(map(abs, changes)) / len(changes) < MEAN_CHANGE
    # The mean log probability changes by the KL divergence, give or take what n changes leave uncertain.
    assert abs(sum(changes)) / len(changes) < MEAN_KL + 3 * math.sqrt(2 * MEAN_KL / len(changes))
