"""Drafts that look at a part of their vocabulary: both executors at the same, and no output changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draft_runs import CONFIG, OPTIONS, DraftRun, decode, random_tokens
from numpy.typing import NDArray

from flashlet.kernels.cpu import NativeModel, TokenHistory, instruction_sets
from flashlet.model.config import ModelConfig
from flashlet.model.draft import DraftConfig, draft_shapes, load_draft, save_draft
from flashlet.model.draft_tensors import draft_tensors
from flashlet.model.errors import ModelFormatError
from flashlet.model.executor import Executor
from flashlet.model.executor_native import NativeExecutor
from flashlet.model.executor_torch import TorchExecutor
from flashlet.model.sampling import SamplingParams
from flashlet.model.transformer_weights import int8_weights

pytestmark = pytest.mark.usefixtures("one_thread")

PackedArrays = Callable[[ModelConfig], dict[str, NDArray[Any]]]
RandomDraft = Callable[[DraftConfig], dict[str, NDArray[Any]]]
TARGET = replace(CONFIG, vocab_size=300)
SHAPE = DraftConfig(
    hidden_size=TARGET.hidden_size,
    vocab_size=TARGET.vocab_size,
    target_layers=TARGET.num_layers,
    features=(1, 3),
    output_vocab_size=256,
    intermediate_size=50,
    attention=False,
    shortlist_gap=1.0,
)
GREEDY, WARM = SamplingParams(temperature=0.0), SamplingParams(temperature=0.8, seed=4)
HOT = SamplingParams(temperature=2.5, seed=5)


@pytest.fixture(scope="module")
def arrays(packed_arrays: PackedArrays) -> dict[str, NDArray[Any]]:
    return packed_arrays(TARGET)


@pytest.fixture(scope="module")
def tensors(random_draft: RandomDraft) -> dict[str, NDArray[Any]]:
    """Tokens in an order of their own."""
    found = random_draft(SHAPE)
    ids = np.random.default_rng(3).permutation(TARGET.vocab_size)[: SHAPE.output_vocab_size]
    return found | {"vocab_ids": ids.astype(np.int32)}


def native(arrays: dict[str, NDArray[Any]], draft: Path, isa: str = "") -> NativeExecutor:
    return NativeExecutor.from_arrays(TARGET, arrays, replace(OPTIONS, draft=draft), isa)


def reference(arrays: dict[str, NDArray[Any]], draft: Path) -> TorchExecutor:
    weights = int8_weights(TARGET, arrays, torch.device("cpu"))
    return TorchExecutor.from_weights(weights, replace(OPTIONS, draft=draft, threads=1))


def drafted(executor: Executor, params: SamplingParams, *, remembers: bool) -> DraftRun:
    history = TokenHistory() if remembers else None
    run = DraftRun(random_tokens(12, 3) * 3, [4, 1, 3, 0, 2], params, 5, history=history)
    decode(executor, [run], 30)
    run.tokens = run.tokens[:30]
    return run


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("remembers", [False, True], ids=["", "history"])
@pytest.mark.parametrize("params", [GREEDY, WARM, HOT], ids=["greedy", "drawn", "hot"])
def test_both_executors_look_at_the_same(
    arrays: dict[str, NDArray[Any]],
    tensors: dict[str, NDArray[Any]],
    tmp_path: Path,
    params: SamplingParams,
    *,
    remembers: bool,
    bits: int,
) -> None:
    """Between one panel and all of them; what the text says is looked at in any case."""
    proposed = []
    for gap in (0.0, 1e-6, 1.0, 1e6):
        draft, shape = tmp_path / f"{gap}.safetensors", replace(SHAPE, bits=bits, shortlist_gap=gap)
        order = np.argsort(tensors["vocab_ids"]) if gap == 0 else np.arange(SHAPE.output_vocab_size)
        save_draft(draft, shape, tensors | {name: tensors[name][order] for name in ("vocab_ids", "head")})
        expected = drafted(reference(arrays, draft), params, remembers=remembers)
        for isa in instruction_sets():
            found = drafted(native(arrays, draft, isa), params, remembers=remembers)
            assert (found.tokens, found.proposed) == (expected.tokens, expected.proposed), (gap, isa)
        proposed.append(expected)
    everything, one, some, all_panels = proposed
    assert all_panels.proposed == everything.proposed
    assert len({str(run.proposed) for run in (one, some, everything)}) == 3
    assert one.tokens == some.tokens == everything.tokens


def test_a_panel_is_not_looked_at_unless_its_score_or_the_text_says_so(
    arrays: dict[str, NDArray[Any]], tensors: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    """One panel's bias is above all others: only its tokens are proposed, and those of the text's panels."""
    draft = tmp_path / "draft.safetensors"
    bias = np.where(np.arange(16) == 5, 1e3, 0).astype(np.float32)
    save_draft(draft, SHAPE, tensors | {"shortlist_bias": bias})
    panels = [set(part.tolist()) for part in tensors["vocab_ids"].reshape(16, 16)]
    for executor in (native(arrays, draft), reference(arrays, draft)):
        forgetful = drafted(executor, WARM, remembers=False)
        assert {token for part in forgetful.proposed for token in part} <= panels[5]
        remembering = drafted(executor, WARM, remembers=True)
        text = {*remembering.prompt, *remembering.tokens}
        known = text.union(panels[5], *(panel for panel in panels if panel & text))
        proposed = {token for part in remembering.proposed for token in part}
        assert proposed <= known and not proposed <= panels[5]


@pytest.mark.parametrize("where", ["shortlist", "head"])
@pytest.mark.parametrize("remembers", [False, True], ids=["", "history"])
def test_weights_that_are_no_numbers_propose_nothing(
    arrays: dict[str, NDArray[Any]],
    tensors: dict[str, NDArray[Any]],
    tmp_path: Path,
    where: str,
    *,
    remembers: bool,
) -> None:
    """Nothing that the draft has to know, that is: what the text says is looked at without a score."""
    draft = tmp_path / "draft.safetensors"
    norm = {"out_norm": np.full(SHAPE.hidden_size, np.nan, np.float32)}
    bias = {"shortlist_bias": np.full(16, np.nan, np.float32)}
    save_draft(draft, SHAPE, tensors | (norm if where == "head" else bias))
    found = [
        drafted(executor, GREEDY, remembers=remembers).proposed
        for executor in (native(arrays, draft), reference(arrays, draft))
    ]
    assert found[0] == found[1]
    assert any(found[0]) == (remembers and where == "shortlist")


def test_a_shortlist_is_loaded_as_it_was(tensors: dict[str, NDArray[Any]], tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_draft(first, SHAPE, tensors)
    found, loaded = load_draft(first, TARGET)
    assert found == SHAPE
    np.testing.assert_array_equal(loaded["vocab_ids"], tensors["vocab_ids"])
    np.testing.assert_array_equal(loaded["shortlist_bias"], tensors["shortlist_bias"])
    again = draft_tensors(found, loaded)
    assert draft_shapes(found)["shortlist"] == again["shortlist"].shape == (16, SHAPE.hidden_size)
    save_draft(second, found, {**again, "vocab_ids": loaded["vocab_ids"]})
    assert second.read_bytes() == first.read_bytes()
    with pytest.raises(ModelFormatError, match="version 1 or 2"):  # as one without would say about this file
        first.write_bytes(first.read_bytes().replace(b'"version":"2"', b'"version":"3"', 1))
        load_draft(first, TARGET)


def test_arrays_that_do_not_fit_are_refused(
    arrays: dict[str, NDArray[Any]], tensors: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    """By the native model as well, whoever made them."""
    four, eight = tmp_path / "4.safetensors", tmp_path / "8.safetensors"
    save_draft(four, replace(SHAPE, bits=4), tensors)
    save_draft(eight, replace(SHAPE, bits=8), tensors)
    config, loaded = load_draft(four, TARGET)
    mixed = {**loaded, "shortlist": load_draft(eight, TARGET)[1]["shortlist"]}
    short = {**loaded, "shortlist_bias": np.zeros(15, np.float32)}
    tables = {name: np.zeros((TARGET.context_length, 8), np.float32) for name in ("rope_cos", "rope_sin")}
    own = {name: np.zeros((TARGET.context_length, 1), np.float32) for name in ("rope_cos", "rope_sin")}
    for broken, message in ((mixed, "weights of as many bits"), (short, "shortlist_bias")):
        with pytest.raises(ValueError, match=message):
            NativeModel(TARGET, {**arrays, **tables}, "int8", 4, 128, 8, 1, "", config, {**broken, **own})
    NativeModel(TARGET, {**arrays, **tables}, "int8", 4, 128, 8, 1, "", config, {**loaded, **own}).close()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.zeros(256), "distinct ids below 300"),
        (np.arange(256)[::-1] + 45, "distinct ids below 300"),
        (np.arange(256) - 1, "distinct ids below 300"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(
    tensors: dict[str, NDArray[Any]], tmp_path: Path, ids: NDArray[np.int64], message: str
) -> None:
    with pytest.raises(ModelFormatError, match=message):
        save_draft(tmp_path / "x", SHAPE, tensors | {"vocab_ids": ids})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shortlist_gap": -1.0}, "shortlist_gap: expected 0 or 1e-6 to 1e6"),
        ({"shortlist_gap": float("inf")}, "shortlist_gap: expected 0 or 1e-6 to 1e6"),
        ({"shortlist_gap": float("nan")}, "shortlist_gap: expected 0 or 1e-6 to 1e6"),
        ({"shortlist_gap": 1e-50}, "shortlist_gap: expected 0 or 1e-6 to 1e6"),  # 0 in binary32
        ({"output_vocab_size": 240}, "output_vocab_size: expected a multiple of 256 beside a shortlist"),
    ],
)
def test_impossible_shortlists_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFormatError, match=message):
        replace(SHAPE, **changes)
