"""Speculation in both executors: verification changes no bit, and native proposes what torch proposes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draft_runs import (
    CONFIG,
    GREEDY,
    OPTIONS,
    DraftRun,
    decode,
    decoded_alone,
    native_executor,
    random_tokens,
    torch_executor,
)
from numpy.typing import NDArray

from flashlet.kernels.cpu import instruction_sets
from flashlet.model.config import ModelConfig
from flashlet.model.executor import Executor, KvDtype
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.sampling import NoTokenError, SampleRequest, SamplingParams
from flashlet.model.step import DraftRequest, SequenceSlice, SliceOutput, Step
from flashlet.model.transformer_weights import int8_weights

pytestmark = pytest.mark.usefixtures("one_thread")

PackedArrays = Callable[[ModelConfig], dict[str, NDArray[Any]]]
WriteDraft = Callable[..., Path]
DRAFTS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "two layers, window": {"num_layers": 2, "window": 21, "features": (1,)},
    "two layers, many heads": {"num_layers": 2, "num_heads": 14, "head_dim": 6, "features": (3, 0)},
    "4 bits": {"bits": 4},
    "feed-forward only": {"attention": False, "num_heads": 0, "num_kv_heads": 0, "head_dim": 0},
}


@pytest.fixture(scope="module")
def arrays(packed_arrays: PackedArrays) -> dict[str, NDArray[Any]]:
    return packed_arrays(CONFIG)


@pytest.fixture(scope="module")
def draft(write_draft: WriteDraft) -> Path:
    return write_draft(CONFIG)


@pytest.mark.parametrize("kv_dtype", ["int8", "fp16"])
@pytest.mark.parametrize("isa", instruction_sets())
def test_verified_rows_are_the_bits_of_decoded_ones(
    arrays: dict[str, NDArray[Any]], isa: str, kv_dtype: KvDtype
) -> None:
    """Whatever the number of proposals, with other sequences beside, right and wrong ones."""
    native, reference = (
        native_executor(arrays, isa, kv_dtype=kv_dtype),
        torch_executor(arrays, kv_dtype=kv_dtype),
    )
    prompt, table = random_tokens(30), [2, 5]
    tokens = decoded_alone(reference, prompt, GREEDY, 12)
    assert decoded_alone(native, prompt, GREEDY, 12) == tokens
    expected = [row.logits for row in reference.forward(_scored(prompt + tokens, table))][29:]
    for size in range(1, 9):
        native.execute(Step([SequenceSlice(prompt[:-1], 0, table)]))
        proposed = [*tokens[: size - 1], (tokens[size - 1] + 1) % CONFIG.vocab_size]
        requests = [SampleRequest(replace(GREEDY, logprobs=1), 30 + i) for i in range(size + 1)]
        step = Step([
            SequenceSlice([3], 0, [7], [SampleRequest(GREEDY, 1)]),
            SequenceSlice(prompt[-1:], 29, table, requests, proposed),
            SequenceSlice([8, 9], 0, [8], [SampleRequest(GREEDY, 2)]),
        ])  # fmt: skip
        np.testing.assert_array_equal(native.logits(step)[1 : 1 + size], expected[:size])
        outputs = native.execute(step)
        assert outputs[1].token_ids == tuple(tokens[:size])
        assert [item.token_id for item in outputs[1].logprobs] == tokens[:size]
        theirs = reference.execute(step)
        assert [output.token_ids for output in theirs] == [output.token_ids for output in outputs]
    native.close()


def _scored(token_ids: list[int], table: list[int]) -> Step:
    return Step([SequenceSlice(token_ids, 0, table, logprob_targets=token_ids)])


@pytest.mark.parametrize("executor", [native_executor, torch_executor])
def test_none_some_and_all_proposals_are_accepted(
    arrays: dict[str, NDArray[Any]], executor: Callable[..., Executor]
) -> None:
    params = SamplingParams(temperature=1.3, seed=9, top_k=30)
    prompt, table = random_tokens(20), [1, 2]
    tokens = decoded_alone(executor(arrays), prompt, params, 5)
    wrong = [(token_id + 1) % CONFIG.vocab_size for token_id in tokens]
    for good in range(4):
        proposed = [*tokens[:good], *wrong[good:3]]
        ours = executor(arrays)
        item = SequenceSlice(
            prompt, 0, table, [SampleRequest(params, 20 + i) for i in range(4)], proposed=proposed
        )
        assert ours.execute(Step([item]))[0].token_ids == tuple(tokens[: good + 1])


def test_masks_after_a_rejected_proposal_do_not_matter(arrays: dict[str, NDArray[Any]]) -> None:
    nothing = SampleRequest(GREEDY, 2, allowed=np.zeros(-(-CONFIG.vocab_size // 32), np.uint32))
    for executor in (native_executor(arrays), torch_executor(arrays)):
        chosen = executor.execute(Step([SequenceSlice([1], 0, [0], [SampleRequest(GREEDY, 1)])]))[
            0
        ].token_ids[0]
        samples = [SampleRequest(GREEDY, 1), nothing]
        rejected = SequenceSlice([1], 0, [0], samples, proposed=[(chosen + 1) % CONFIG.vocab_size])
        assert executor.execute(Step([rejected]))[0].token_ids == (chosen,)
        with pytest.raises(NoTokenError):
            executor.execute(Step([replace(rejected, proposed=[chosen])]))


@pytest.mark.parametrize("kv_dtype", ["int8", "fp16"])
@pytest.mark.parametrize("shape", DRAFTS)
def test_native_proposes_what_torch_proposes(
    arrays: dict[str, NDArray[Any]], write_draft: WriteDraft, shape: str, kv_dtype: KvDtype
) -> None:
    """Greedy, to the bit: chunked prompts, several sequences of different k, every instruction set."""
    changes = {"draft": write_draft(CONFIG, **DRAFTS[shape]), "kv_dtype": kv_dtype}
    reference = _runs()
    decode(torch_executor(arrays, **changes), reference, 12)
    proposals = [run.proposed for run in reference]
    assert len({token_id for part in proposals[0] for token_id in part}) > 3
    for isa in instruction_sets():
        native, runs = native_executor(arrays, isa, **changes), _runs()
        decode(native, runs, 12)
        native.close()
        assert [run.proposed for run in runs] == proposals
        assert [run.tokens for run in runs] == [run.tokens for run in reference]


def _runs() -> list[DraftRun]:
    return [
        DraftRun(random_tokens(60, 5), [0, 1, 2], num_tokens=3, chunk=25),
        DraftRun(random_tokens(9, 6), [3], num_tokens=8),
        DraftRun(random_tokens(70, 7), [6, 5, 4], num_tokens=1, follow_from=64, chunk=32),
        DraftRun(random_tokens(31, 8), [7, 8], num_tokens=5, chunk=30),
        DraftRun([1], [9], num_tokens=0),
    ]


def test_drawn_proposals_use_the_noise_of_their_positions(
    arrays: dict[str, NDArray[Any]], draft: Path
) -> None:
    """Noise and sums differ in their last digits between the samplers: a near tie may tip."""
    params = SamplingParams(temperature=0.9, top_k=40, top_p=0.95, seed=77)
    ours, theirs = (
        [DraftRun(random_tokens(20, seed), [seed], params) for seed in range(4)] for _ in range(2)
    )
    decode(native_executor(arrays, draft=draft), ours, 10)
    decode(torch_executor(arrays, draft=draft), theirs, 10)
    pairs = list(zip(_all_proposals(ours), _all_proposals(theirs), strict=True))
    assert sum(a == b for a, b in pairs) >= 0.98 * len(pairs)
    assert len(set(_all_proposals(ours))) > 20


def test_nothing_is_proposed_behind_a_token_that_the_draft_is_not_sure_of(
    arrays: dict[str, NDArray[Any]], draft: Path
) -> None:
    """Others beside it go on; both executors are as sure."""
    params = SamplingParams(temperature=0.9, seed=5)
    texts = [(random_tokens(20, 1), GREEDY), (random_tokens(33, 2), params), (random_tokens(7, 3), GREEDY)]
    native, reference = native_executor(arrays, draft=draft), torch_executor(arrays, draft=draft)

    def proposals(executor: Executor, least: list[float]) -> list[SliceOutput]:
        return list(executor.execute(Step([
            SequenceSlice(
                prompt, 0, [2 * i, 2 * i + 1], [SampleRequest(params, len(prompt))],
                draft=DraftRequest(8, 0, least_confidence=part),
            )
            for i, ((prompt, params), part) in enumerate(zip(texts, least, strict=True))
        ])))  # fmt: skip

    whole = proposals(native, [0.0, 0.0, 0.0])
    for theirs, ours in zip(proposals(reference, [0.0, 0.0, 0.0]), whole, strict=True):
        assert len(ours.confidences) == len(ours.proposed) == 8
        assert theirs.proposed == ours.proposed
        assert theirs.confidences == pytest.approx(ours.confidences, rel=1e-4)
        assert all(0 < value < 1 for value in ours.confidences)
    for place in range(3):
        least = [0.0, 0.0, 0.0]
        stop = 3 + place
        least[place] = math.prod(whole[place].confidences[:stop]) * 1.001
        for executor in (native, reference):
            outputs = proposals(executor, least)
            for i, output in enumerate(outputs):
                count = stop if i == place else 8
                assert output.proposed == whole[i].proposed[:count]
                assert len(output.confidences) == count


def _all_proposals(runs: list[DraftRun]) -> list[int]:
    return [token_id for run in runs for part in run.proposed for token_id in part]


def test_proposals_do_not_depend_on_chunks_threads_or_neighbours(
    arrays: dict[str, NDArray[Any]], draft: Path
) -> None:
    prompt = random_tokens(75)
    expected = DraftRun(prompt, [3, 0, 1])
    decode(native_executor(arrays, draft=draft, threads=1), [expected], 10)
    for chunk, threads in ((1, 2), (7, 1), (32, 3), (64, 2)):
        run = DraftRun(prompt, [1, 2, 4], chunk=chunk)
        decode(native_executor(arrays, draft=draft, threads=threads), [run, *_runs()[1:2]], 10)
        assert (run.tokens, run.proposed) == (expected.tokens, expected.proposed)


def test_output_is_the_same_with_and_without_a_draft(arrays: dict[str, NDArray[Any]], draft: Path) -> None:
    """Also where the context ends."""
    native = native_executor(arrays, draft=draft)
    for params in (GREEDY, SamplingParams(temperature=0.8, seed=3)):
        run = DraftRun(random_tokens(28), [2, 0, 4, 1, 3], params, num_tokens=8)
        decode(native, [run], 100)
        assert run.tokens == decoded_alone(native, run.prompt, params, len(run.tokens))
    end = DraftRun(random_tokens(155), [2, 0, 4, 1, 3], num_tokens=8, chunk=100)
    decode(native, [end], 1)
    assert len(end.proposed[0]) == 4  # after position 155, up to 159


def test_drafted_rows_may_lie_beyond_the_block_table(arrays: dict[str, NDArray[Any]], draft: Path) -> None:
    native, prompts = native_executor(arrays, draft=draft), [random_tokens(30, seed) for seed in (3, 4)]
    long, short = ([DraftRun(prompts[i], tables[i], num_tokens=8) for i in range(2)]
                   for tables in ([[0, 1], [2, 3]], [[4], [5]]))  # fmt: skip
    for runs in (long, short):
        decode(native, runs, 1)
    assert [run.proposed for run in short] == [run.proposed for run in long]
    assert all(len(run.proposed[0]) == 8 for run in short)


def test_long_contexts_grow_while_drafting(write_draft: WriteDraft, packed_arrays: PackedArrays) -> None:
    """Threads share the spans of a long context: a new one may begin at a drafted position."""
    config = replace(CONFIG, context_length=640)
    arrays, draft = packed_arrays(config), write_draft(config)
    runs, table = [], list(range(20))
    for make, threads in ((NativeExecutor.from_arrays, 1), (NativeExecutor.from_arrays, 2), (None, 1)):
        options = replace(OPTIONS, draft=draft, threads=threads)
        weights = int8_weights(config, arrays, torch.device("cpu"))
        executor = make(config, arrays, options) if make else TorchExecutor.from_weights(weights, options)
        run = DraftRun(random_tokens(502), table, num_tokens=8, chunk=120)
        decode(executor, [run], 16)
        runs.append((run.tokens, run.proposed))
    assert runs[0] == runs[1] == runs[2]


def test_a_draft_may_start_anywhere_and_skip_what_it_has_not_followed(
    arrays: dict[str, NDArray[Any]], draft: Path
) -> None:
    """What lies before its start, whoever wrote it, does not matter."""
    prompt, found = random_tokens(50), []
    for before in (random_tokens(96, 1), random_tokens(96, 3)):
        for executor in (native_executor(arrays, draft=draft), torch_executor(arrays, draft=draft)):
            run = DraftRun(before, [0, 1, 2], chunk=40)
            decode(executor, [run], 1)
            executor.execute(Step([SequenceSlice(prompt[:37], 0, [1, 2])]))
            late = SequenceSlice(
                prompt[37:], 37, [1, 2], [SampleRequest(GREEDY, 50)], draft=DraftRequest(4, 37)
            )
            found.append(executor.execute(Step([late]))[0].proposed)
    assert len(set(found)) == 1
    assert len(found[0]) == 4


def test_features_are_the_residual_stream(arrays: dict[str, NDArray[Any]]) -> None:
    """Of the known tokens, not of the proposed ones; equal in chunks, and in both executors."""
    prompt, wanted = random_tokens(40), (0, 2, 3, 1)
    native, reference = native_executor(arrays), torch_executor(arrays)
    whole = SequenceSlice(
        prompt, 0, [0, 1], [SampleRequest(GREEDY, 40 + i) for i in range(3)], [5, 6], features=wanted
    )
    neighbour = SequenceSlice([7, 8, 9], 0, [2])
    ours, theirs = (
        executor.execute(Step([neighbour, whole]))[1].features for executor in (native, reference)
    )
    assert ours is not None
    assert theirs is not None
    assert (ours.shape, ours.dtype) == ((40, 4, CONFIG.hidden_size), np.float32)
    np.testing.assert_array_equal(ours, theirs)
    parts = [
        native.execute(Step([neighbour, SequenceSlice(prompt[a:b], a, [0, 1], features=wanted)]))[1].features
        for a, b in ((0, 1), (1, 30), (30, 40))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), ours)
    assert all(not np.array_equal(ours[:, 0], ours[:, i]) for i in (1, 2, 3))


@pytest.mark.parametrize("make", [native_executor, torch_executor])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proposed": [1]}, r"expected 1 \+ 1 samples .* got 3"),
        ({"proposed": [1, 2, 3]}, r"expected 1 \+ 3 samples .* got 3"),
        ({"samples": (), "proposed": [1]}, "got 0"),
        ({"proposed": [1] * 40}, "within 32 slots|samples"),
        ({"features": [-1]}, r"feature: expected 0 \.\. 3, got -1"),
        ({"features": [4]}, r"feature: expected 0 \.\. 3, got 4"),
        ({"draft": DraftRequest(9, 0)}, r"expected 0 \.\. 8"),
        ({"draft": DraftRequest(-1, 0)}, r"expected 0 \.\. 8"),
        ({"draft": DraftRequest(1, 1)}, "start from 0 to"),
        ({"draft": DraftRequest(1, -1)}, "start from 0 to"),
        ({"draft": DraftRequest(1, 0, 5)}, "next token exactly where nothing is sampled"),
        ({"samples": (), "proposed": (), "draft": DraftRequest(0, 0)}, "next token exactly"),
        ({"samples": (), "proposed": (), "draft": DraftRequest(1, 0, 5)}, "draft: expected 0"),
    ],
)
def test_impossible_requests_are_refused(
    arrays: dict[str, NDArray[Any]],
    draft: Path,
    make: Callable[..., Executor],
    changes: dict[str, Any],
    message: str,
) -> None:
    good = SequenceSlice([1, 2], 0, [0], [SampleRequest(GREEDY, 2 + i) for i in range(3)], [3, 4])
    executor = make(arrays, draft=draft)
    with pytest.raises(ValueError, match=message):
        executor.execute(Step([replace(good, **changes)]))
    assert len(executor.execute(Step([replace(good, draft=DraftRequest(8, 0))]))[0].proposed) == 8
    with pytest.raises(ValueError, match="no draft model"):
        make(arrays).execute(Step([replace(good, draft=DraftRequest(0, 0))]))


@pytest.mark.parametrize("bad", [-1, CONFIG.vocab_size])
def test_proposed_and_next_tokens_are_checked(arrays: dict[str, NDArray[Any]], draft: Path, bad: int) -> None:
    native = native_executor(arrays, draft=draft)
    for item in (
        SequenceSlice([1], 0, [0], [SampleRequest(GREEDY, 1 + i) for i in range(2)], [bad]),
        SequenceSlice([1], 0, [0], draft=DraftRequest(0, 0, bad)),
    ):
        with pytest.raises(ValueError, match="token id"):
            native.execute(Step([item]))


def test_a_draft_takes_room_in_the_blocks_and_in_the_name(
    arrays: dict[str, NDArray[Any]], draft: Path, write_draft: WriteDraft
) -> None:
    for make in (native_executor, torch_executor):
        plain, drafting = make(arrays), make(arrays, draft=draft)
        assert (plain.max_draft_tokens, drafting.max_draft_tokens) == (0, 8)
        assert "draft random" in drafting.name
        # per token: 2 layers x 2 heads x (K, V) x (16 int8 + scale), and (K, V) x (24 + scale) of the draft
        assert drafting.num_blocks in {
            OPTIONS.kv_cache_bytes // (32 * bytes_) for bytes_ in (160 + 56, 160 + 72)
        }
        without = make(arrays, draft=write_draft(CONFIG, **DRAFTS["feed-forward only"]))
        assert without.num_blocks == plain.num_blocks
