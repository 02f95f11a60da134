"""The native sampler against the reference sampler, on the logits that the native executor reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flashlet.kernels.cpu import instruction_sets
from flashlet.model.config import ModelConfig, RopeConfig
from flashlet.model.executor import ExecutorOptions
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.sampler import sample, token_logprobs
from flashlet.model.sampling import SampleRequest, SamplingParams, TokenLogprobs
from flashlet.model.step import SequenceSlice, SliceOutput, Step

PackedArrays = Callable[[ModelConfig], dict[str, NDArray[Any]]]
OPTIONS = ExecutorOptions(kv_cache_bytes=1 << 20, max_step_tokens=64, max_sequences=32, threads=2)
SLICES = OPTIONS.max_sequences
CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=1003,
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    context_length=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def arrays(packed_arrays: PackedArrays) -> dict[str, NDArray[Any]]:
    """Tokens 16 .. 31 get the logits of tokens 0 .. 15: ties."""
    arrays = packed_arrays(CONFIG)
    arrays["head"][1] = arrays["head"][0]
    return arrays


@pytest.fixture(scope="module", params=instruction_sets())
def executor(request: pytest.FixtureRequest, arrays: dict[str, NDArray[Any]]) -> NativeExecutor:
    return NativeExecutor.from_arrays(CONFIG, arrays, OPTIONS, request.param)


def _random_params(rng: np.random.Generator, **fixed: Any) -> SamplingParams:
    biased = rng.choice(CONFIG.vocab_size, rng.choice([0, 0, 5]), replace=False)
    drawn: dict[str, Any] = {
        "temperature": float(rng.choice([1e-6, 0.01, 0.3, 1.0, 1.0, 1.7, 20.0])),
        "top_k": int(rng.choice([0, 0, 1, 2, 40, 1003, 5000])),
        "top_p": float(rng.choice([1.0, 1.0, 0.95, 0.5, 1e-9])),
        "min_p": float(rng.choice([0.0, 0.0, 0.05, 0.5, 1.0])),
        "presence_penalty": float(rng.choice([0.0, 0.0, 0.7, -1.3])),
        "frequency_penalty": float(rng.choice([0.0, 0.0, 0.3, -0.2])),
        "repetition_penalty": float(rng.choice([1.0, 1.0, 1.3, 0.8])),
        "logit_bias": tuple((int(token_id), float(rng.uniform(-3, 3))) for token_id in biased),
        "seed": int(rng.integers(0, 1 << 64, dtype=np.uint64)),
    }
    return SamplingParams(**(drawn | fixed))


def _random_request(rng: np.random.Generator, **fixed: Any) -> SampleRequest:
    """The history and the masks name the likely tokens as well: they lie below 40, among the ties."""
    params = _random_params(rng, **fixed)
    ids = rng.integers(0, rng.choice([40, CONFIG.vocab_size]), 30).tolist()
    mask = rng.integers(0, 1 << 32, -(-CONFIG.vocab_size // 32), dtype=np.uint32)
    return SampleRequest(
        params,
        position=int(rng.choice([7, (3 << 32) + 1])),
        prompt=ids[:10] if params.needs_history else (),
        output=ids[10:] if params.needs_history else (),
        suppressed=ids[: int(rng.choice([0, 0, 8]))],
        allowed=mask if rng.random() < 0.3 else None,
    )


def _step(requests: list[SampleRequest], rng: np.random.Generator) -> Step:
    """One-token sequences in blocks of their own, so that logits differ from slice to slice."""
    token_ids = rng.integers(0, CONFIG.vocab_size, len(requests)).tolist()
    return Step([
        SequenceSlice([token_id], 0, [i], [request])
        for i, (token_id, request) in enumerate(zip(token_ids, requests, strict=True))
    ])  # fmt: skip


def test_draws_are_the_reference_sampler_s(executor: NativeExecutor) -> None:
    """Noise and sums differ in their last digits, which may tip a choice that is all but a tie."""
    rng, same, total = np.random.default_rng(0), 0, 0
    for _ in range(20):
        requests = [_random_request(rng) for _ in range(SLICES)]
        step = _step(requests, rng)
        expected = [sample(*pair) for pair in zip(executor.logits(step), requests, strict=True)]
        same += sum(
            out.token_ids == (token_id,)
            for out, token_id in zip(executor.execute(step), expected, strict=True)
        )
        total += SLICES
    assert same >= 0.995 * total


def test_greedy_choices_are_exactly_the_reference_sampler_s(executor: NativeExecutor) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        requests = [_random_request(rng, temperature=0.0) for _ in range(SLICES)]
        step = _step(requests, rng)
        expected = [sample(*pair) for pair in zip(executor.logits(step), requests, strict=True)]
        assert [out.token_ids for out in executor.execute(step)] == [(token_id,) for token_id in expected]


def test_all_instruction_sets_draw_the_same(arrays: dict[str, NDArray[Any]]) -> None:
    rng = np.random.default_rng(2)
    steps = [_step([_random_request(rng, logprobs=3) for _ in range(SLICES)], rng) for _ in range(5)]
    outputs = []
    for isa in instruction_sets():
        for threads in (1, 3):
            native = NativeExecutor.from_arrays(CONFIG, arrays, replace(OPTIONS, threads=threads), isa)
            outputs.append([native.execute(step) for step in steps])
            native.close()
    assert all(output == outputs[0] for output in outputs)


def test_parameters_may_change_between_steps(executor: NativeExecutor) -> None:
    greedy, drawn = SamplingParams(temperature=0.0), SamplingParams(temperature=50.0, seed=3)
    for order in ((greedy, drawn), (drawn, greedy), (greedy, replace(drawn, seed=4)), (greedy, greedy)):
        step = _step([SampleRequest(params, 1) for params in order], np.random.default_rng(1))
        logits = executor.logits(step)
        found = [output.token_ids[0] for output in executor.execute(step)]
        assert found == [sample(row, item.samples[0]) for row, item in zip(logits, step.slices, strict=True)]


def test_flat_logits_need_the_whole_vocabulary(executor: NativeExecutor) -> None:
    """At such temperatures all tokens are alike, so filters cannot stop at a window below the maximum."""
    rng = np.random.default_rng(3)
    for fixed in ({"top_p": 0.999}, {"top_k": 1000}, {"top_p": 0.7, "top_k": 900}, {"min_p": 0.99}):
        requests = [
            SampleRequest(SamplingParams(temperature=1e4, seed=seed, **fixed), 3) for seed in range(SLICES)
        ]
        step = _step(requests, rng)
        expected = [sample(*pair) for pair in zip(executor.logits(step), requests, strict=True)]
        found = [out.token_ids[0] for out in executor.execute(step)]
        assert sum(a == b for a, b in zip(found, expected, strict=True)) >= SLICES - 1
        assert len(set(found)) > SLICES // 2


def _assert_close(found: TokenLogprobs, expected: TokenLogprobs) -> None:
    assert found.token_id == expected.token_id
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
    assert [token_id for token_id, _ in found.top] == [token_id for token_id, _ in expected.top]
    assert [p for _, p in found.top] == pytest.approx([p for _, p in expected.top], abs=1e-5)


@pytest.mark.parametrize("count", [0, 1, 20, CONFIG.vocab_size, CONFIG.vocab_size + 5])
def test_logprobs_are_those_of_the_raw_logits(executor: NativeExecutor, count: int) -> None:
    """Whatever penalties and masks did to the choice; tokens of equal logits by id."""
    rng = np.random.default_rng(4)
    step = _step([_random_request(rng, logprobs=count) for _ in range(8)], rng)
    for logits, output in zip(executor.logits(step), executor.execute(step), strict=True):
        (found,) = output.logprobs
        _assert_close(found, token_logprobs(logits, output.token_ids[0], count))


def test_targets_are_scored_in_order(executor: NativeExecutor) -> None:
    """With the sampled token of the same slice, beside slices that want one or the other or nothing."""
    rng = np.random.default_rng(5)
    prompt, targets = rng.integers(0, CONFIG.vocab_size, (2, 30)).tolist()
    request = SampleRequest(SamplingParams(temperature=0.0, logprobs=1), 30)
    step = Step([
        SequenceSlice(prompt, 0, [0], [request], logprob_targets=targets[:29], num_top_logprobs=2),
        SequenceSlice(prompt[:5], 0, [1]),
        SequenceSlice(prompt[:7], 0, [2], logprob_targets=targets[:3]),
        SequenceSlice(prompt[:9], 0, [3], [request]),
    ])  # fmt: skip
    logits = executor.logits(step)
    assert len(logits) == 29 + 1 + 3 + 1
    both, nothing, scored, sampled = executor.execute(step)
    assert nothing == SliceOutput()
    for row in range(29):
        _assert_close(both.target_logprobs[row], token_logprobs(logits[row], targets[row], 2))
    for row in range(3):
        _assert_close(scored.target_logprobs[row], token_logprobs(logits[30 + row], targets[row], 0))
    assert (scored.token_ids, scored.logprobs) == ((), ())
    for output, row in ((both, 29), (sampled, 33)):
        assert output.token_ids == (int(logits[row].argmax()),)
        _assert_close(output.logprobs[0], token_logprobs(logits[row], output.token_ids[0], 1))
    assert sampled.target_logprobs == ()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_without_tokens_is_an_error(executor: NativeExecutor, temperature: float) -> None:
    words = np.zeros(-(-CONFIG.vocab_size // 32), np.uint32)
    one = words.copy()
    one[31] = 1 << 10  # the last token, 1002
    params = SamplingParams(temperature=temperature, top_p=0.9)
    allowed = [SampleRequest(params, 1, allowed=one), SampleRequest(params, 1, suppressed=range(1002))]
    outputs = executor.execute(Step([SequenceSlice([3], 0, [i], [item]) for i, item in enumerate(allowed)]))
    assert [output.token_ids for output in outputs] == [(1002,), (1002,)]
    one[31] = 1 << 11  # a bit beyond the vocabulary
    for mask in (words, one):
        step = Step([SequenceSlice([3], 0, [0], [SampleRequest(params, 1, allowed=mask)])])
        with pytest.raises(FloatingPointError, match="mask left no token"):
            executor.execute(step)


def _with_broken_head(arrays: dict[str, NDArray[Any]], scale: float) -> dict[str, NDArray[Any]]:
    """One output of the head, token 37's, has this for a scale."""
    head = arrays["head"].copy()
    head.view(np.float16)[37 // 16, 0, 37 % 16] = scale
    return arrays | {"head": head}


@pytest.mark.parametrize("scale", [np.nan, np.inf])
@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 3, "min_p": 0.1}])
def test_a_single_logit_that_is_no_number_is_an_error(
    arrays: dict[str, NDArray[Any]], scale: float, params: dict[str, Any]
) -> None:
    native = NativeExecutor.from_arrays(CONFIG, _with_broken_head(arrays, scale), OPTIONS)
    drawn = SampleRequest(SamplingParams(**params), 1, suppressed=[37])
    items = (SequenceSlice([token_id], 0, [0], [drawn]) for token_id in range(50))
    sampled = next(item for item in items if native.logits(Step([item]))[0, 37] != -np.inf)
    for item in (sampled, replace(sampled, samples=(), logprob_targets=[6])):
        with pytest.raises(FloatingPointError, match="not numbers"):
            native.execute(Step([item]))


@pytest.mark.parametrize("name", ["final_norm", "layers.0.attn_norm", "layers.0.ffn_norm"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_hidden_states_that_are_no_numbers_are_an_error(
    arrays: dict[str, NDArray[Any]], name: str, value: float
) -> None:
    broken = arrays[name].copy()
    broken[5] = value
    native = NativeExecutor.from_arrays(CONFIG, arrays | {name: broken}, OPTIONS)
    with pytest.raises(FloatingPointError, match="not numbers"):
        native.execute(Step([SequenceSlice([5], 0, [0], [SampleRequest(SamplingParams(), 1)])]))
