"""What a draft remembers of the text: lookups, and proposals that are the same in both executors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draft_runs import CONFIG, DraftRun, decode, decoded_alone, native_executor, random_tokens, torch_executor
from numpy.typing import NDArray

from flashlet.kernels.cpu import TokenHistory, instruction_sets
from flashlet.model.config import ModelConfig
from flashlet.model.draft import load_draft
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import DraftRequest, SequenceSlice, Step

PackedArrays = Callable[[ModelConfig], dict[str, NDArray[Any]]]
WriteDraft = Callable[..., Path]
BY_LENGTH = (2.48, 3.80, 4.57, 7.49)
GREEDY, WARM = SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, seed=4)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def history_of(tokens: list[int]) -> TokenHistory:
    history = TokenHistory()
    history.extend(tokens)
    return history


def expected_successors(text: list[int], behind: list[int]) -> dict[int, float]:
    """By the definition: the latest 16 places of the last token that something follows."""
    whole = text + behind
    lengths: dict[int, int] = {}
    counts: dict[int, int] = {}
    places = [i for i in range(len(text) - 1) if text[i] == whole[-1]]
    for place in reversed(places[-16:]):
        length = 1
        while length < min(4, place + 1, len(whole)) and text[place - length] == whole[-1 - length]:
            length += 1
        token = text[place + 1]
        lengths[token] = max(lengths.get(token, 0), length)
        counts[token] = counts.get(token, 0) + 1
    return {
        token: BY_LENGTH[lengths[token] - 1] + 1.26 * math.log(counts[token]) - 1.03 * math.log(len(counts))
        for token in counts
    }


def test_successors_are_what_followed_before() -> None:
    rng = np.random.default_rng(3)
    seen = 0
    for size in (1, 2, 3, 8, 60, 300):
        for kinds in (2, 5, 40):
            text = rng.integers(0, kinds, size).tolist()
            for behind in (
                [],
                [text[0]],
                rng.integers(0, kinds, 2).tolist(),
                rng.integers(0, kinds, 6).tolist(),
            ):
                found = dict(history_of(text).successors(behind))
                expected = expected_successors(text, behind)
                assert found == pytest.approx(expected, abs=1e-5)
                seen += len(found)
    assert seen > 100


def test_a_history_takes_in_only_what_is_new() -> None:
    history = history_of([1, 2, 3])
    history.extend([9, 9, 9, 1])  # the beginning is known, whatever is given for it
    assert len(history) == 4
    assert [token for token, _ in history.successors([])] == [2]
    with pytest.raises(ValueError, match="expected 0 or more"):
        history.extend([1, 2, 3, 1, -5])
    assert TokenHistory().successors([7]) == []


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "drawn"])
def test_both_executors_remember_alike(
    packed_arrays: PackedArrays, write_draft: WriteDraft, params: SamplingParams
) -> None:
    """Tokens that the draft does not know are proposed, too, and no output changes."""
    arrays, draft = packed_arrays(CONFIG), write_draft(CONFIG)
    own = set(load_draft(draft, CONFIG)[1]["vocab_ids"].tolist())
    plain = decoded_alone(native_executor(arrays), random_tokens(12, 3) * 3, params, 30)

    def run(executor: Any, *, remembers: bool = True) -> DraftRun:
        history = TokenHistory() if remembers else None
        item = DraftRun(random_tokens(12, 3) * 3, [4, 1, 3, 0, 2], params, 5, history=history)
        decode(executor, [item], 30)
        assert item.tokens[:30] == plain
        return item

    forgetful = run(native_executor(arrays, draft=draft), remembers=False)
    reference = run(torch_executor(arrays, draft=draft))
    assert reference.proposed != forgetful.proposed
    assert not own.issuperset(token for part in reference.proposed for token in part)
    assert own.issuperset(token for part in forgetful.proposed for token in part)
    for isa in instruction_sets():
        assert run(native_executor(arrays, isa, draft=draft)).proposed == reference.proposed


def test_a_history_of_another_vocabulary_is_refused(
    packed_arrays: PackedArrays, write_draft: WriteDraft
) -> None:
    executor = native_executor(packed_arrays(CONFIG), draft=write_draft(CONFIG))
    order = DraftRequest(2, 0, history=history_of([1, CONFIG.vocab_size, 1]))
    step = Step([SequenceSlice([1], 0, [0], [SampleRequest(GREEDY, 1)], draft=order)])
    with pytest.raises(ValueError, match=f"token ids up to {CONFIG.vocab_size - 1}"):
        executor.execute(step)
