"""What training tells a draft that its text says: what the server tells it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from corpora import corpus_of

from flashlet.kernels.cpu import TokenHistory
from flashlet.model.draft_transformer import BY_DOUBT, BY_GAP
from flashlet.model.weights import open_weights
from flashlet.serving.distill.corpus import Answer
from flashlet.serving.distill.reminders import reminders
from flashlet.serving.distill.target import TargetParts
from flashlet.serving.distill.windows import batches, make_windows

TEXT = [5, 6, 7, 5, 6, 9, 5, 6, 7]


def said(tokens: list[int], position: int) -> dict[int, float]:
    ids, weights = reminders(tokens, position, 1)
    return {int(ids[0, i]): float(weights[0, i]) for i in range(ids.shape[1]) if ids[0, i] >= 0}


def test_what_followed_before_may_follow_again() -> None:
    assert said(TEXT, 0) == said(TEXT, 1) == said(TEXT, 3) == {}
    assert said(TEXT, 4).keys() == {6}
    assert said(TEXT, 8).keys() == {7, 9}
    assert said(TEXT, 9).keys() == {5}  # behind the end


def test_positions_of_a_span_are_those_alone() -> None:
    ids, weights = reminders(TEXT, 2, 8)
    for index in range(8):
        history = TokenHistory()
        history.extend(TEXT[: 2 + index])
        expected = dict(history.successors([]))
        found = dict(zip(ids[index].tolist(), weights[index].tolist(), strict=True))
        assert found == ({**expected, -1: 0.0} if len(expected) < ids.shape[1] else expected)


def test_batches_remind_of_each_of_their_tokens(tmp_path: Path) -> None:
    """A window that begins in the middle of a conversation knows what stands before it."""
    corpus = corpus_of(tmp_path, Answer("chat", 4, 24), tokens=(1, 2, 3, 4, 5, 6) * 4)
    (batch,) = batches(make_windows([corpus], False, 8), 256, 2)
    assert [window.start for window in batch.windows] == [0, 8, 16]
    for window, tokens, ids in zip(batch.windows, batch.tokens, batch.reminder_ids, strict=True):
        for place, token in enumerate(tokens.tolist()):
            position = window.start + place
            if position < 24:
                expected = [token] if position > 6 else []
                assert ids[place][ids[place] >= 0].tolist() == expected


def test_only_tokens_of_the_draft_are_reminded_of(tiny_model_path: Path) -> None:
    target = TargetParts.load(open_weights(tiny_model_path), np.array([1, 3, 5], np.int32))
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    ids, weights = torch.tensor([[3, 4, -1, -1]]), torch.tensor([[0.5, 7.0, 0.0, 0.0]])
    doubt = math.log(math.exp(-2) + math.exp(-1) + 1)
    expected = [[1.0, 2.0 + 0.5 + float(BY_DOUBT) * doubt + float(BY_GAP), 3.0]]
    torch.testing.assert_close(target.remind(logits, ids, weights), torch.tensor(expected))
