"""What training tells a draft that its text says: what the server tells it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from corpora import corpus_of

from flashlet.kernels.cpu import TokenHistory
from flashlet.model.weights import open_weights
from flashlet.serving.distill.corpus import Answer
from flashlet.serving.distill.reminders import reminders
from flashlet.serving.distill.target import TargetParts
from flashlet.serving.distill.windows import batches, make_windows

TEXT = [5, 6, 7, 5, 6, 9, 5, 6, 7]


def said(tokens: list[int], position: int) -> dict[int, float]:
    ids, bonuses = reminders(tokens, position, 1)
    return {int(ids[0, i]): float(bonuses[0, i]) for i in range(ids.shape[1]) if bonuses[0, i]}


def test_what_followed_before_may_follow_again() -> None:
    assert said(TEXT, 0) == said(TEXT, 1) == said(TEXT, 3) == {}
    assert said(TEXT, 4).keys() == {6}
    assert said(TEXT, 8).keys() == {7, 9}
    assert said(TEXT, 9).keys() == {5}  # behind the end


def test_positions_of_a_span_are_those_alone() -> None:
    ids, bonuses = reminders(TEXT, 2, 8)
    for index in range(8):
        history = TokenHistory()
        history.extend(TEXT[: 2 + index])
        expected = dict(history.successors([]))
        assert (
            dict(zip(ids[index].tolist(), bonuses[index].tolist(), strict=True)).items() >= expected.items()
        )
        assert (bonuses[index] != 0).sum() == len(expected)


def test_batches_remind_of_each_of_their_tokens(tmp_path: Path) -> None:
    """A window that begins in the middle of a conversation knows what stands before it."""
    corpus = corpus_of(tmp_path, Answer("chat", 4, 24), tokens=(1, 2, 3, 4, 5, 6) * 4)
    (batch,) = batches(make_windows([corpus], False, 8), 256, 2)
    assert [window.start for window in batch.windows] == [0, 8, 16]
    for window, tokens, ids, bonuses in zip(
        batch.windows, batch.tokens, batch.reminder_ids, batch.reminders, strict=True
    ):
        for place, token in enumerate(tokens.tolist()):
            position = window.start + place
            if position < 24:
                expected = [token] if position > 6 else []
                assert ids[place][bonuses[place] != 0].tolist() == expected


def test_only_tokens_of_the_draft_are_reminded_of(tiny_model_path: Path) -> None:
    target = TargetParts.load(open_weights(tiny_model_path), np.array([1, 3, 5], np.int32))
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    ids, bonuses = torch.tensor([[5, 4, 0, 0]]), torch.tensor([[0.5, 7.0, 0.0, 0.0]])
    assert target.remind(logits, ids, bonuses).tolist() == [[1.0, 2.0, 3.5]]
