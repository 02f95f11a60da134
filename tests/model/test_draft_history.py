"""What a draft remembers of the text: proposals are the same in both executors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from draft_runs import CONFIG, DraftRun, decode, decoded_alone, native_executor, random_tokens, torch_executor
from numpy.typing import NDArray

from flashlet.kernels.cpu import TokenHistory, instruction_sets
from flashlet.model.config import ModelConfig
from flashlet.model.draft import load_draft
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import DraftRequest, SequenceSlice, Step

pytestmark = pytest.mark.usefixtures("one_thread")

PackedArrays = Callable[[ModelConfig], dict[str, NDArray[Any]]]
WriteDraft = Callable[..., Path]
GREEDY, WARM = SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, seed=4)


def history_of(tokens: list[int]) -> TokenHistory:
    history = TokenHistory()
    history.extend(tokens)
    return history


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


@pytest.mark.parametrize("in_order", [True, False])
def test_of_two_tokens_that_the_text_makes_equally_likely_the_lower_one_is_proposed(
    packed_arrays: PackedArrays, write_draft: WriteDraft, in_order: bool
) -> None:
    arrays, draft = packed_arrays(CONFIG), write_draft(CONFIG)
    own = set(load_draft(draft, CONFIG)[1]["vocab_ids"].tolist())
    lower, higher, *_ = (token for token in range(CONFIG.vocab_size) if token not in own)
    first, second = (lower, higher) if in_order else (higher, lower)
    one, two, *others = sorted(own)[:7]
    prompt = [one, two, first, *others[:2], one, two, second, *others[2:], one]
    always_two = SamplingParams(temperature=0.0, logit_bias=((two, 100.0),))
    for executor in (native_executor(arrays, draft=draft), torch_executor(arrays, draft=draft)):
        item = DraftRun(prompt, [4, 1, 3], always_two, 1, history=TokenHistory())
        decode(executor, [item], 1)
        assert (item.tokens, item.proposed) == ([two], [(lower,)])


def test_a_history_of_another_vocabulary_is_refused(
    packed_arrays: PackedArrays, write_draft: WriteDraft
) -> None:
    executor = native_executor(packed_arrays(CONFIG), draft=write_draft(CONFIG))
    order = DraftRequest(2, 0, history=history_of([1, CONFIG.vocab_size, 1]))
    step = Step([SequenceSlice([1], 0, [0], [SampleRequest(GREEDY, 1)], draft=order)])
    with pytest.raises(ValueError, match=f"token ids up to {CONFIG.vocab_size - 1}"):
        executor.execute(step)
