"""What the native executor refuses, and that it gives back what it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from flashlet.kernels.cpu import block_bytes
from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.errors import OutOfMemoryError
from flashlet.model.executor import ExecutorOptions, create_executor
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import SequenceSlice, Step

PackedArrays = Callable[[ModelConfig], dict[str, NDArray[Any]]]
Arrays = dict[str, NDArray[Any]]
OPTIONS = ExecutorOptions(kv_cache_bytes=1 << 18, max_step_tokens=64, max_sequences=4, threads=1)
CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    context_length=128,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def arrays(packed_arrays: PackedArrays) -> Arrays:
    return packed_arrays(CONFIG)


@pytest.fixture(scope="module")
def executor(arrays: Arrays) -> NativeExecutor:
    return NativeExecutor.from_arrays(CONFIG, arrays, OPTIONS)


def _slice(token_ids: Any = (1,), start: int = 0, table: Any = (0,), **changes: Any) -> SequenceSlice:
    return SequenceSlice(token_ids, start, table, **changes)


def _sampled(**changes: Any) -> SequenceSlice:
    request = {name: changes.pop(name) for name in ("prompt", "suppressed", "allowed") if name in changes}
    return _slice(samples=[SampleRequest(SamplingParams(**changes), 1, **request)])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (_slice([-1]), r"token id: expected 0 \.\. 99, got -1"),
        (_slice([100]), r"token id: expected 0 \.\. 99, got 100"),
        (_slice([1 << 40]), "token id: .* got 1099511627776"),
        (_slice(["one"]), "token id: .* got 'one'"),
        (_slice([1.5]), r"token id: .* got 1\.5"),
        (_slice(table=[-1]), r"block id: expected 0 \.\. 50, got -1"),
        (_slice(table=[51]), r"block id: expected 0 \.\. 50, got 51"),
        (_slice(table=[0, 51]), "block id"),
        (_slice(table=[1 << 40]), "block id"),
        (_slice([]), "1 token or more"),
        (_slice(start=-1), "from position -1"),
        (_slice(start=2**31 - 1), "within 32 slots .* from position 2147483647"),
        (_slice([1, 2], start=2**31 - 2, table=range(40)), "within 128 slots"),
        (_slice(start=2**31), "start: .* got 2147483648"),
        (_slice(table=[]), "within 0 slots"),
        (_slice([1] * 33), "within 32 slots .* got 33 tokens from position 0"),
        (_slice(start=32), "within 32 slots"),
        (_slice(start=128, table=range(40)), "within 128 slots"),
        (_slice([1] * 65, table=range(3)), "at most 64 tokens and 4 slices; got 65"),
        (_slice(logprob_targets=[1, 2]), "more targets than tokens"),
        (_slice(logprob_targets=[100]), "token id"),
        (_sampled(seed=-1), "seed: .* got -1"),
        (_sampled(seed=1 << 64), "seed"),
        (_sampled(top_k=1 << 40), "top_k"),
        (_sampled(logit_bias=((100, 1.0),)), "token id"),
        (_sampled(logit_bias=((-1, 1.0),)), "token id"),
        (_sampled(suppressed=[100]), "token id"),
        (_sampled(presence_penalty=1.0, prompt=[100]), "token id"),
        (_sampled(allowed=np.zeros(3, np.uint32)), "allowed: expected 4 words of uint32"),
        (_sampled(allowed=np.zeros(4, np.uint64)), "allowed: expected 4 words of uint32"),
        (_sampled(allowed=np.zeros((2, 2), np.uint32)), "allowed: expected 4 words of uint32"),
    ],
)
def test_impossible_slices_are_refused(executor: NativeExecutor, item: SequenceSlice, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        executor.execute(Step([_slice(table=[7]), item]))
    good = Step([_slice([1, 2, 3], samples=[SampleRequest(SamplingParams(temperature=0), 3)])])
    assert executor.execute(good)[0].token_ids == (int(executor.logits(good).argmax()),)


def test_a_step_holds_so_many_tokens_and_slices(executor: NativeExecutor) -> None:
    full = [_slice([1] * 16, table=[i]) for i in range(4)]
    assert len(executor.execute(Step(full))) == 4
    with pytest.raises(ValueError, match="after 4 tokens in 4 slices"):
        executor.execute(Step([_slice(table=[i]) for i in range(5)]))
    with pytest.raises(ValueError, match="after 48 tokens in 3 slices"):
        executor.execute(Step([*full[:3], _slice([1] * 17)]))


def test_an_empty_step_does_nothing(executor: NativeExecutor) -> None:
    assert executor.execute(Step([])) == []
    assert executor.logits(Step([])).shape == (0, 100)


def test_arrays_of_numpy_serve_as_token_ids_and_tables(executor: NativeExecutor) -> None:
    as_lists = Step([_slice([5, 6], table=[3], logprob_targets=[7, 8])])
    as_arrays = Step([_slice(np.array([5, 6]), table=np.array([3]), logprob_targets=np.array([7, 8]))])
    assert executor.execute(as_arrays) == executor.execute(as_lists)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_dtype": "fp32"}, "kv_dtype: expected int8 or fp16, got fp32"),
        ({"threads": -1}, "expected 1 or more, got -1"),
        ({"max_step_tokens": 0}, "expected 1 or more"),
        ({"max_step_tokens": -1}, "expected 1 or more"),
        ({"max_sequences": 0}, "expected 1 or more"),
    ],
)
def test_impossible_options_are_refused(arrays: Arrays, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NativeExecutor.from_arrays(CONFIG, arrays, replace(OPTIONS, **changes))


def test_an_unknown_instruction_set_is_refused(arrays: Arrays) -> None:
    with pytest.raises(ValueError, match="got mmx"):
        NativeExecutor.from_arrays(CONFIG, arrays, OPTIONS, "mmx")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("layers.1.o", lambda array: array[:-1], r"layers\.1\.o: expected packed shape \(4, 2, 544 or"),
        ("layers.1.o", lambda array: array.view(np.int8), "contiguous array of bytes"),
        ("embed", lambda array: array[:, :, ::-1], "contiguous array of bytes"),
        ("embed", lambda array: array.reshape(-1), "embed: expected packed shape"),
        ("embed", lambda array: np.ascontiguousarray(array[:, :, :288]), "expected int8 weights, got 4-bit"),
        ("final_norm", lambda array: array[:-1], "final_norm: expected 64 floats, got 63"),
        ("final_norm", lambda array: array.astype(np.float64), "contiguous array of binary32"),
        ("layers.0.ffn_norm", lambda array: np.repeat(array, 2)[::2], "contiguous array of binary32"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays: Arrays, name: str, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NativeExecutor.from_arrays(CONFIG, arrays | {name: change(arrays[name])}, OPTIONS)


@pytest.mark.parametrize("name", ["layers.1.down", "head", "layers.0.attn_norm"])
def test_missing_arrays_are_refused(arrays: Arrays, name: str) -> None:
    rest = {other: array for other, array in arrays.items() if other != name}
    with pytest.raises(ValueError, match=f"{name}: missing"):
        NativeExecutor.from_arrays(CONFIG, rest, OPTIONS)


def test_heads_too_wide_are_refused(packed_arrays: PackedArrays) -> None:
    config = replace(CONFIG, head_dim=514, num_heads=1, num_kv_heads=1)
    with pytest.raises(ValueError, match="head_dim: expected at most 512"):
        NativeExecutor.from_arrays(config, packed_arrays(config), OPTIONS)


def test_the_pool_takes_what_fits_and_needs_two_blocks(arrays: Arrays) -> None:
    # 2 layers x (K, V) x 2 heads x 32 tokens x (16 int8 + one float)
    assert block_bytes(CONFIG, "int8") == 2 * 2 * 2 * 32 * 20
    assert block_bytes(CONFIG, "fp16") == 2 * 2 * 2 * 32 * 32
    three = replace(OPTIONS, kv_cache_bytes=5120 * 4 - 1)
    assert NativeExecutor.from_arrays(CONFIG, arrays, three).num_blocks == 3
    with pytest.raises(OutOfMemoryError, match="at least 10240 bytes .* got 10239"):
        NativeExecutor.from_arrays(CONFIG, arrays, replace(OPTIONS, kv_cache_bytes=10_239))


@pytest.mark.parametrize("size", [1 << 50, 1 << 60])
def test_a_pool_larger_than_memory_is_out_of_memory(arrays: Arrays, size: int) -> None:
    with pytest.raises(OutOfMemoryError, match=r"\d+ bytes could not be allocated"):
        NativeExecutor.from_arrays(CONFIG, arrays, replace(OPTIONS, kv_cache_bytes=size))


def test_closing_twice_is_harmless_and_final(arrays: Arrays) -> None:
    executor = NativeExecutor.from_arrays(CONFIG, arrays, OPTIONS)
    executor.close()
    executor.close()
    for call in (
        lambda: executor.execute(Step([_slice()])),
        lambda: executor.logits(Step([_slice()])),
        executor.native.take_profile,
        executor.native.measure_read,
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_closed_executors_leave_no_memory_and_no_threads_behind(arrays: Arrays) -> None:
    process = psutil.Process()
    options = replace(OPTIONS, kv_cache_bytes=64 << 20, max_step_tokens=512, max_sequences=512, threads=3)
    blocks = options.kv_cache_bytes // block_bytes(CONFIG, "int8")
    resident, threads = [], []
    for _ in range(4):
        executor = NativeExecutor.from_arrays(CONFIG, arrays, options)
        for first in range(0, blocks, 512):  # touches every block
            slices = [_slice(table=[block]) for block in range(first, min(first + 512, blocks))]
            executor.execute(Step(slices))
        executor.close()
        resident.append(process.memory_info().rss)
        threads.append(process.num_threads())
    assert max(resident) - resident[0] < 8 << 20
    assert threads[-1] <= threads[0]  # those of other tests may end meanwhile


def test_the_arrays_need_not_be_kept(packed_arrays: PackedArrays) -> None:
    expected = NativeExecutor.from_arrays(CONFIG, arrays := packed_arrays(CONFIG), OPTIONS)
    executor = NativeExecutor.from_arrays(
        CONFIG, {name: array.copy() for name, array in arrays.items()}, OPTIONS
    )
    rubbish = [np.full_like(array, 77) for _ in range(3) for array in arrays.values()]
    step = Step([_slice(range(20), logprob_targets=range(20))])
    np.testing.assert_array_equal(executor.logits(step), expected.logits(step))
    assert rubbish


def test_the_name_says_what_runs(tiny_model_path: Path) -> None:
    options = replace(OPTIONS, threads=2, kv_dtype="fp16")
    executor = create_executor(tiny_model_path, options)
    assert isinstance(executor, NativeExecutor)
    assert executor.name == f"native int8 ({executor.native.isa}, 2 threads, fp16 KV)"
    assert executor.block_size == 32
    assert executor.config.context_length == 512


def test_profile_and_bandwidth_are_measured(executor: NativeExecutor) -> None:
    executor.native.take_profile()
    executor.execute(Step([_slice(range(64), table=[0, 1], logprob_targets=range(64))]))
    profile = executor.native.take_profile()
    assert set(profile) >= {"qkv", "attention", "output", "gate_up", "down", "head", "sample"}
    assert all(seconds >= 0 for seconds in profile.values())
    assert sum(profile.values()) > 0
    assert not any(executor.native.take_profile().values())
    assert executor.native.measure_read() > 0
