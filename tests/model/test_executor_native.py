"""The native executor against the torch one, bit for bit: shapes, instruction sets, chunks, threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flashlet.kernels.cpu import BLOCK_SIZE, instruction_sets
from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.executor import ExecutorOptions, KvDtype
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.step import SequenceSlice, Step
from flashlet.model.transformer_weights import int8_weights

pytestmark = pytest.mark.usefixtures("one_thread")

PackedArrays = Callable[[ModelConfig], dict[str, NDArray[Any]]]
OPTIONS = ExecutorOptions(kv_cache_bytes=1 << 21, max_step_tokens=512, threads=1)
CPU = torch.device("cpu")
BASE = ModelConfig(
    architecture="llama",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    context_length=256,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=False,
)
ALL_BIASES = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
SHAPES: dict[str, dict[str, Any]] = {
    "two heads per KV head": {},
    "one head per KV head": {"num_heads": 2, "num_kv_heads": 2},
    "three of 24": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 24, "tie_word_embeddings": True},
    "seven, odd widths": {
        "num_heads": 7, "num_kv_heads": 1, "head_dim": 24, "hidden_size": 40, "intermediate_size": 50,
        "vocab_size": 37, "qkv_bias": True,
    },
    "more than a tile of heads": {"num_heads": 13, "num_kv_heads": 1},
    "sixteen with all biases": {"num_heads": 32, "num_kv_heads": 2, **ALL_BIASES},
    "heads of 64, normed": {"num_heads": 2, "num_kv_heads": 1, "head_dim": 64, "qk_norm": True},
    "heads of 80 in windows": {
        "num_heads": 2, "num_kv_heads": 1, "head_dim": 80, "sliding_windows": (5, 40),
    },
    "heads of 128, one window": {
        "num_heads": 2, "num_kv_heads": 1, "head_dim": 128, "sliding_windows": (0, 33),
    },
    "tiny and odd": {
        "num_heads": 3, "num_kv_heads": 1, "head_dim": 6, "hidden_size": 10, "intermediate_size": 7,
        "vocab_size": 17, "qk_norm": True, "num_layers": 3, **ALL_BIASES,
    },
    "mlp biases at odd width": {"intermediate_size": 50, "mlp_bias": True, "vocab_size": 129},
}  # fmt: skip


def _tokens(count: int, config: ModelConfig, seed: int = 2) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, count).tolist()


def _chunks(token_ids: list[int], size: int, table: Sequence[int]) -> Iterator[Step]:
    """The sequence in steps of `size` tokens, with the logits of every token."""
    for start in range(0, len(token_ids), size):
        part = token_ids[start : start + size]
        yield Step([SequenceSlice(part, start, table, logprob_targets=part)])


def _torch_logits(
    config: ModelConfig, arrays: dict[str, NDArray[Any]], kv_dtype: KvDtype, token_ids: list[int]
) -> NDArray[np.float32]:
    options = replace(OPTIONS, kv_dtype=kv_dtype, kv_cache_bytes=1 << 23)
    executor = TorchExecutor.from_weights(int8_weights(config, arrays, CPU), options)
    (step,) = _chunks(token_ids, 512, range(len(token_ids) // BLOCK_SIZE + 1))
    return np.stack([row.logits for row in executor.forward(step)])


def _native(
    config: ModelConfig, arrays: dict[str, NDArray[Any]], isa: str = "", **changes: Any
) -> NativeExecutor:
    return NativeExecutor.from_arrays(config, arrays, replace(OPTIONS, **changes), isa)


@pytest.mark.parametrize("kv_dtype", ["int8", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_torch_s_to_the_bit(shape: str, kv_dtype: KvDtype, packed_arrays: PackedArrays) -> None:
    config = replace(BASE, **SHAPES[shape])
    arrays = packed_arrays(config)
    token_ids = _tokens(100, config)
    expected = _torch_logits(config, arrays, kv_dtype, token_ids)
    assert expected.std() > 0.1
    table = [5, 2, 0, 3]
    for isa in instruction_sets():
        for threads, size in ((1, 7), (2, 1), (3, 64), (2, 512)):
            native = _native(config, arrays, isa, threads=threads, kv_dtype=kv_dtype)
            found = np.concatenate([native.logits(step) for step in _chunks(token_ids, size, table)])
            native.close()
            np.testing.assert_array_equal(found, expected, f"{isa}, {threads} threads, chunks of {size}")


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("kv_dtype", ["int8", "fp16"])
def test_batch_mates_do_not_matter(isa: str, kv_dtype: KvDtype, packed_arrays: PackedArrays) -> None:
    """Random chunks of random sequences over scattered, used blocks: each row as if it were alone."""
    config = replace(BASE, sliding_windows=(21, 0))
    arrays = packed_arrays(config)
    rng = np.random.default_rng(3)
    prompts = [_tokens(n, config, n) for n in (1, 2, 31, 32, 33, 64, 65, 70, 100, 5)]
    expected = [_torch_logits(config, arrays, kv_dtype, prompt) for prompt in prompts]
    native = _native(config, arrays, isa, threads=2, kv_dtype=kv_dtype)
    for _ in range(4):
        found = _together(native, prompts, rng)
        for rows, alone in zip(found, expected, strict=True):
            np.testing.assert_array_equal(np.stack(rows), alone)
    native.close()


def _together(
    native: NativeExecutor, prompts: list[list[int]], rng: np.random.Generator
) -> list[list[NDArray[np.float32]]]:
    """Logits of every token, by prompt, from steps of random chunks of random prompts."""
    blocks = iter(rng.permutation(native.num_blocks).tolist())
    tables = [[next(blocks) for _ in range(len(prompt) // BLOCK_SIZE + 1)] for prompt in prompts]
    starts = [0] * len(prompts)
    logits: list[list[NDArray[np.float32]]] = [[] for _ in prompts]
    while any(start < len(prompt) for start, prompt in zip(starts, prompts, strict=True)):
        slices, owners = [], []
        longest = int(rng.choice([2, 14, 60]))  # at most one token each: pure decoding
        for index in rng.permutation(len(prompts)).tolist():
            part = prompts[index][starts[index] :][: int(rng.integers(0, longest))]
            if part:
                slices.append(SequenceSlice(part, starts[index], tables[index], logprob_targets=part))
                owners += [index] * len(part)
                starts[index] += len(part)
        for owner, row in zip(owners, native.logits(Step(slices)), strict=True):
            logits[owner].append(row)
    return logits


def test_shared_blocks_serve_several_sequences(packed_arrays: PackedArrays) -> None:
    """A common prefix is computed once; both continuations, in one step, equal those of whole sequences."""
    arrays = packed_arrays(BASE)
    prefix, ends = _tokens(64, BASE), [_tokens(9, BASE, 5), _tokens(20, BASE, 6)]
    native = _native(BASE, arrays, threads=2)
    native.execute(Step([SequenceSlice(prefix, 0, [7, 1])]))
    slices = [
        SequenceSlice(end, 64, [7, 1, own], logprob_targets=end)
        for end, own in zip(ends, [4, 9], strict=True)
    ]
    expected = [_torch_logits(BASE, arrays, "int8", prefix + end)[64:] for end in ends]
    np.testing.assert_array_equal(native.logits(Step(slices)), np.concatenate(expected))


@pytest.mark.parametrize("kv_dtype", ["int8", "fp16"])
def test_a_sequence_may_begin_in_a_copied_block(packed_arrays: PackedArrays, kv_dtype: KvDtype) -> None:
    arrays, shared = packed_arrays(BASE), _tokens(64, BASE)
    end = _tokens(11, BASE, 5)
    native = _native(BASE, arrays, kv_dtype=kv_dtype, threads=2)
    native.execute(Step([SequenceSlice(shared, 0, [7, 1])]))
    slices = [
        SequenceSlice([3] * 32, 0, [1]),  # its block is taken from the first sequence in the same step
        SequenceSlice(end, 50, [7, 4], logprob_targets=end, copied_block=1),
    ]
    expected = _torch_logits(BASE, arrays, kv_dtype, shared[:50] + end)[50:]
    np.testing.assert_array_equal(native.logits(Step(slices)), expected)


def test_a_table_may_hold_more_blocks_than_the_slice_needs(packed_arrays: PackedArrays) -> None:
    arrays, token_ids = packed_arrays(BASE), _tokens(20, BASE)
    native = _native(BASE, arrays)
    found = np.concatenate([native.logits(step) for step in _chunks(token_ids, 8, [3, 0, 1, 2, 9, 11])])
    np.testing.assert_array_equal(found, _torch_logits(BASE, arrays, "int8", token_ids))


def test_a_rope_scaling_reaches_the_kernels(packed_arrays: PackedArrays) -> None:
    plain = BASE
    scaled = replace(BASE, rope=RopeConfig(scaling="yarn", factor=4.0, original_context=64))
    arrays, token_ids = packed_arrays(BASE), _tokens(50, BASE)
    found = [
        np.concatenate([_native(config, arrays).logits(step) for step in _chunks(token_ids, 512, [0, 1])])
        for config in (plain, scaled)
    ]
    assert not np.array_equal(*found)
    np.testing.assert_array_equal(found[1], _torch_logits(scaled, arrays, "int8", token_ids))


def _poisoned(config: ModelConfig, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Makes the keys and values of the last token of the vocabulary overflow binary32, of no other."""
    poison = config.vocab_size - 1
    changed = {name: array.copy() for name, array in arrays.items()}
    changed["layers.0.attn_norm"][0] = 1e38
    embed = changed["embed"]  # [panels, groups, scales and 16 pairs of inputs x 16 outputs x 2]
    codes = embed[:, :, 2 * 16 :].reshape(*embed.shape[:2], 16, 16, 2)
    codes[:, 0, 0, :, 0] = 0
    codes[poison // 16, :, :, poison % 16] = 0
    codes[poison // 16, 0, 0, poison % 16, 0] = 127
    return changed


@pytest.mark.parametrize("kv_dtype", ["int8", "fp16"])
@pytest.mark.parametrize("isa", instruction_sets())
def test_what_stale_slots_hold_does_not_matter(
    isa: str, kv_dtype: KvDtype, packed_arrays: PackedArrays
) -> None:
    """Not even infinities and NaNs that a broken-down sequence has left."""
    arrays = _poisoned(BASE, packed_arrays(BASE))
    token_ids = [token_id % (BASE.vocab_size - 1) for token_id in _tokens(70, BASE)]
    expected = _torch_logits(BASE, arrays, kv_dtype, token_ids)
    assert np.isfinite(expected).all()
    native = _native(BASE, arrays, isa, kv_dtype=kv_dtype)
    native.execute(Step([SequenceSlice([BASE.vocab_size - 1] * 96, 0, [1, 0, 3])]))
    found = np.concatenate([native.logits(step) for step in _chunks(token_ids, 7, [3, 1, 0])])
    native.close()
    np.testing.assert_array_equal(found, expected)
