"""The torch executor: int8 invariance bit for bit, what a step returns, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flashlet.model.config import ModelConfig
from flashlet.model.errors import MissingExtraError, OutOfMemoryError, UnsupportedModelError
from flashlet.model.executor import ExecutorOptions, create_executor
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.kv_pool import block_bytes
from flashlet.model.sampler import sample, token_logprobs
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import SequenceSlice, SliceOutput, Step
from flashlet.model.transformer import TransformerWeights
from flashlet.model.transformer_weights import int8_weights
from flashlet.model.weight_cache import load_int8

OPTIONS = ExecutorOptions(backend="torch", kv_cache_bytes=1 << 18, max_step_tokens=128, max_sequences=8)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("FLASHLET_CACHE", str(tmp_path_factory.getbasetemp() / "int8"))


@pytest.fixture
def executor(tiny_model_path: Path) -> TorchExecutor:
    return TorchExecutor(tiny_model_path, OPTIONS)


@dataclass
class _Sequence:
    token_ids: list[int]
    block_table: list[int]
    start: int = 0


def _prefill(token_ids: list[int], table: list[int], **changes: Any) -> SequenceSlice:
    return SequenceSlice(token_ids, 0, table, **changes)


def _alone(executor: TorchExecutor, token_ids: list[int]) -> list[bytes]:
    """Logits of every token of one sequence, in one step."""
    table = list(range(len(token_ids) // 32 + 1))
    step = Step([_prefill(token_ids, table, logprob_targets=token_ids)])
    return [row.logits.tobytes() for row in executor.forward(step)]


def _together(
    executor: TorchExecutor, prompts: list[list[int]], rng: np.random.Generator
) -> list[list[bytes]]:
    """The same, in steps of random chunks of random sequences over scattered blocks."""
    blocks = iter(rng.permutation(executor.num_blocks).tolist())
    waiting = [_Sequence(p, [next(blocks) for _ in range(len(p) // 32 + 1)]) for p in prompts]
    logits: list[list[bytes]] = [[] for _ in prompts]
    while any(s.start < len(s.token_ids) for s in waiting):
        slices, members = [], []
        for index in rng.permutation(len(waiting)).tolist():
            sequence = waiting[index]
            part = sequence.token_ids[sequence.start :][: int(rng.integers(0, 14))]
            if part:
                slices.append(SequenceSlice(part, sequence.start, sequence.block_table, logprob_targets=part))
                members.append(index)
                sequence.start += len(part)
        for row in executor.forward(Step(slices)):
            logits[members[row.slice_index]].append(row.logits.tobytes())
    return logits


@pytest.mark.parametrize(("kv_dtype", "window"), [("int8", 0), ("int8", 21), ("fp16", 0)])
def test_int8_logits_depend_on_the_prefix_only(tiny_model_path: Path, kv_dtype: Any, window: int) -> None:
    cached = load_int8(tiny_model_path)
    config = replace(cached.config, sliding_windows=(window, 0) if window else ())
    weights = int8_weights(config, cached.arrays, CPU)
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in (1, 31, 32, 33, 70)]
    options = replace(OPTIONS, kv_dtype=kv_dtype)
    executor = TorchExecutor.from_weights(weights, options)
    expected = [_alone(executor, prompt) for prompt in prompts]
    for _ in range(2):  # the second time over stale blocks
        assert _together(executor, prompts, rng) == expected


def test_int8_is_close_to_fp32_at_odd_widths(
    narrow_config: ModelConfig, random_weights: Callable[..., Any], write_folder: Callable[..., Path]
) -> None:
    path = write_folder(narrow_config, random_weights(narrow_config))
    token_ids = np.random.default_rng(0).integers(0, narrow_config.vocab_size, 40).tolist()
    step = Step([_prefill(token_ids, [1, 0], logprob_targets=token_ids)])
    options = [OPTIONS, replace(OPTIONS, weights="fp32"), replace(OPTIONS, weights="fp32", kv_dtype="fp32")]
    int8, float_int8_kv, fp32 = (
        np.stack([row.logits for row in TorchExecutor(path, chosen).forward(step)]) for chosen in options
    )
    spread = fp32.std()
    assert 0 < np.abs(float_int8_kv - fp32).max() < 0.05 * spread
    assert 0 < np.abs(int8 - fp32).max() < 0.1 * spread


def test_a_step_returns_what_was_asked_for(executor: TorchExecutor) -> None:
    greedy = SamplingParams(temperature=0, logprobs=2)
    drawn = SamplingParams(seed=5)
    step = Step([
        _prefill([5, 6, 7], [0]),
        _prefill([8, 9], [1], samples=[SampleRequest(greedy, 2)]),
        _prefill(
            [5, 6, 7],
            [2],
            samples=[SampleRequest(drawn, 3)],
            logprob_targets=[6, 7],
            num_top_logprobs=1,
        ),
    ])  # fmt: skip
    rows = {(row.slice_index, row.token_index): row.logits for row in executor.forward(step)}
    assert list(rows) == [(1, 1), (2, 0), (2, 1), (2, 2)]
    nothing, with_logprobs, with_targets = executor.execute(step)
    best = int(rows[1, 1].argmax())
    assert nothing == SliceOutput()
    assert with_logprobs == SliceOutput((best,), (token_logprobs(rows[1, 1], best, 2),))
    assert with_targets.token_ids == (sample(rows[2, 2], SampleRequest(drawn, 3)),)
    assert with_targets.logprobs == ()
    assert with_targets.target_logprobs == (
        token_logprobs(rows[2, 0], 6, 1),
        token_logprobs(rows[2, 1], 7, 1),
    )
    assert executor.execute(Step([])) == []


def test_many_logits_rows_come_in_order(executor: TorchExecutor) -> None:
    token_ids = list(range(100))
    step = Step([_prefill(token_ids, [3, 2, 1, 0], logprob_targets=token_ids)])
    assert [row.token_index for row in executor.forward(step)] == token_ids


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([_prefill(list(range(129)), list(range(5)))], "at most 128 tokens"),
        ([_prefill([1], [block]) for block in range(9)], "9 in 9"),
        ([_prefill(list(range(33)), [0])], "within 32 slots"),
        ([SequenceSlice([1], 512, list(range(20)))], "context of 512"),
        ([_prefill([], [0])], "1 token or more"),
        ([_prefill([1], [0], logprob_targets=[1, 2])], "more logprob targets"),
    ],
)
def test_steps_beyond_the_limits_are_refused(
    executor: TorchExecutor, slices: list[SequenceSlice], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        executor.execute(Step(slices))


@pytest.mark.parametrize(
    "changes", [{"kv_dtype": "fp32"}, {"device": "toaster"}, {"device": "meta"}, {"device": "cuda:99"}]
)
def test_impossible_options_are_refused(tiny_model_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        create_executor(tiny_model_path, replace(OPTIONS, **changes))


def test_pool_takes_what_fits_and_needs_two_blocks(tiny_model_path: Path) -> None:
    cached = load_int8(tiny_model_path)
    weights: TransformerWeights = int8_weights(cached.config, cached.arrays, CPU)
    # 2 layers x (K, V) x 2 heads x 32 tokens x (16 int8 + one float)
    assert block_bytes(cached.config, "int8") == 2 * 2 * 2 * 32 * 20
    assert block_bytes(cached.config, "fp16") == 2 * 2 * 2 * 32 * 32
    options = replace(OPTIONS, kv_cache_bytes=5120 * 3 - 1)
    assert TorchExecutor.from_weights(weights, options).num_blocks == 2
    with pytest.raises(OutOfMemoryError, match=r"at least 10,240 bytes .* got 10,239"):
        TorchExecutor.from_weights(weights, replace(OPTIONS, kv_cache_bytes=10_239))
    with pytest.raises(OutOfMemoryError, match="not available"):
        TorchExecutor.from_weights(weights, replace(OPTIONS, kv_cache_bytes=1 << 60))


def test_closing_twice_is_harmless_and_final(executor: TorchExecutor) -> None:
    executor.close()
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.execute(Step([_prefill([1], [0])]))


def test_names_say_what_runs(tiny_model_path: Path) -> None:
    options = replace(OPTIONS, weights="fp32", kv_dtype="fp16")
    executor = create_executor(tiny_model_path, options)
    assert isinstance(executor, TorchExecutor)
    assert executor.name == "torch fp32 kv-fp16 cpu"
    assert executor.block_size == 32


def test_native_does_not_run_fp32(tiny_model_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="native"):
        create_executor(tiny_model_path, replace(OPTIONS, backend="native", weights="fp32"))


def test_missing_torch_names_the_command(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashlet.model.executor.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flashlet\[torch\]'"):
        create_executor(tiny_model_path, OPTIONS)
