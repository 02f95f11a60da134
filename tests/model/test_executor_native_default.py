"""The default model: the native executor says what the torch executor says."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flashlet.kernels.cpu import instruction_sets
from flashlet.model.executor import ExecutorOptions
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import SequenceSlice, Step
from flashlet.model.tokenizer import load_tokenizer

PROMPTS = [
    "The capital of Norway is", "A long time ago, in a village by the sea,", "Ice melts when",
    "def is_prime(n):", "The lazy dog", "The best film of the year was", "To bake a loaf of bread, first",
    "The four seasons are",
    "He closed the window and", "Gravity is", "The longest river in the world", "An even number is",
    "Dear colleagues,", "The train leaves at", "2, 4, 6, 8,", "Plants need", "Last summer we went to",
    "#include <stdio.h>", "The opposite of big is", "Once there was a king who",
]  # fmt: skip
NEW_TOKENS = 24
GREEDY = SamplingParams(temperature=0)
OPTIONS = ExecutorOptions(kv_cache_bytes=1 << 26, threads=1)


@pytest.fixture(scope="module")
def torch_int8(default_model_path: Path) -> TorchExecutor:
    return TorchExecutor(default_model_path, OPTIONS)


@pytest.fixture(scope="module")
def token_ids(default_model_path: Path) -> list[int]:
    return (load_tokenizer(default_model_path).encode("\n".join(PROMPTS)) * 2)[:200]


@pytest.fixture(scope="module")
def expected(torch_int8: TorchExecutor, token_ids: list[int]) -> NDArray[np.float32]:
    """Logits of torch after each token, from one step."""
    step = Step([SequenceSlice(token_ids, 0, range(7), logprob_targets=token_ids)])
    return np.stack([row.logits for row in torch_int8.forward(step)])


def _variants() -> list[tuple[str, int, int]]:
    """(instruction set, threads, chunk): all chunks with the best set, one with the others."""
    best, *others = instruction_sets()
    return [(best, 1, 512), (best, 2, 1), (best, 3, 7), (best, 2, 64), *((isa, 2, 512) for isa in others)]


@pytest.mark.parametrize(("isa", "threads", "size"), _variants())
def test_logits_equal_torch_s(
    default_model_path: Path,
    token_ids: list[int],
    expected: NDArray[np.float32],
    isa: str,
    threads: int,
    size: int,
) -> None:
    """To the bit, where 1e-3 is promised."""
    options = ExecutorOptions(kv_cache_bytes=1 << 26, threads=threads)
    native = NativeExecutor(default_model_path, options, isa)
    count = 50 if isa == "portable" or size == 1 else len(token_ids)  # these take their time
    table = [9, 3, 4, 0, 8, 1, 2]
    for start in range(0, count, size):
        part = token_ids[start : min(start + size, count)]
        found = native.logits(Step([SequenceSlice(part, start, table, logprob_targets=part)]))
        difference = np.abs(found - expected[start : start + len(part)]).max()
        assert difference == 0, f"logits from position {start} on differ by up to {difference}"
    native.close()


def _greedy(native: NativeExecutor, prompts: list[list[int]]) -> list[list[int]]:
    """Continuations of all prompts, together in each step."""
    outputs: list[list[int]] = [[] for _ in prompts]
    parts, starts = prompts, [0] * len(prompts)
    for _ in range(NEW_TOKENS):
        slices = [
            SequenceSlice(part, start, [2 * i, 2 * i + 1], [SampleRequest(GREEDY, start + len(part))])
            for i, (part, start) in enumerate(zip(parts, starts, strict=True))
        ]
        starts = [start + len(part) for start, part in zip(starts, parts, strict=True)]
        parts = [list(result.token_ids) for result in native.execute(Step(slices))]
        for output, part in zip(outputs, parts, strict=True):
            output.extend(part)
    return outputs


def _most_likely(
    executor: TorchExecutor, prompts: list[list[int]], outputs: list[list[int]]
) -> list[list[int]]:
    """Greedy choices after each prompt and after each token of its output but the last, from one step."""
    texts = [prompt + output[:-1] for prompt, output in zip(prompts, outputs, strict=True)]
    slices = [
        SequenceSlice(text, 0, [2 * i, 2 * i + 1], logprob_targets=text) for i, text in enumerate(texts)
    ]
    choices = (int(row.logits.argmax()) for row in executor.forward(Step(slices)))
    of_texts = [list(islice(choices, len(text))) for text in texts]
    return [found[len(prompt) - 1 :] for found, prompt in zip(of_texts, prompts, strict=True)]


def test_greedy_text_equals_torch_s(default_model_path: Path, torch_int8: TorchExecutor) -> None:
    """After each token of native's text, that token is torch's choice, too: so both write the same text."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(default_model_path)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    native = NativeExecutor(default_model_path, OPTIONS)
    outputs = _greedy(native, prompts)
    native.close()
    half = len(prompts) // 2
    assert _most_likely(torch_int8, prompts[:half], outputs[:half]) == outputs[:half]
    assert _most_likely(torch_int8, prompts[half:], outputs[half:]) == outputs[half:]
    assert len({tokenizer.decode(output) for output in outputs}) == len(PROMPTS)
