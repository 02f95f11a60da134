"""Batches for the draft: windows of conversations with the rows to draft from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flashlet.serving.distill.corpus import Conversation, Corpus
from flashlet.serving.distill.reminders import MOST, reminders

SHUFFLE_ROWS = 32_768  # windows of similar length meet in batches within so many rows


@dataclass(frozen=True, slots=True)
class Window:
    """Rows start .. start + length - 1 of a conversation."""

    corpus: Corpus
    conversation: Conversation
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Windows padded to one length. Row p knows token p + 1; the draft's step j predicts token p + j + 2."""

    tokens: Tensor  # int64 [batch, length + 1]
    features: Tensor  # float32 [batch, length, features, hidden]
    starts: Tensor  # int64 [batch], position of the first row
    rows: Tensor  # int64 [batch, selected], padded with zeros
    weights: Tensor  # float32 [batch, selected, steps]: 1 where the predicted token is the model's own
    reminder_ids: Tensor  # int64 [batch, length + 1, MOST]: what the text says about each of `tokens`
    reminders: Tensor  # float32, the same shape: how much speaks for it
    windows: Sequence[Window]

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        return Batch(
            self.tokens.to(device),
            self.features.to(device),
            self.starts.to(device),
            self.rows.to(device),
            self.weights.to(device),
            self.reminder_ids.to(device),
            self.reminders.to(device),
            self.windows,
        )


def make_windows(corpora: Sequence[Corpus], held_out: bool, length: int) -> list[Window]:
    """All windows of at most `length` rows that predict some of an answer."""
    windows = [
        Window(corpus, item, start, min(length, item.length - start))
        for corpus in corpora
        for item in corpus.conversations
        if item.held_out == held_out
        for start in range(0, item.length - 1, length)
    ]
    return [window for window in windows if any(_answer_rows(window))]


def batches(
    windows: Sequence[Window],
    batch_rows: int,
    num_steps: int,
    rng: random.Random | None = None,
    skip: int = 0,
    *,
    remind: bool = True,
) -> Iterator[Batch]:
    """One epoch in batches of at most `batch_rows` padded rows; in the order of length without `rng`.

    The first `skip` batches are left out, the others are what they would be with them. Without `remind` they
    do not know what the text says.
    """
    order = list(windows)
    if rng is not None:
        rng.shuffle(order)
    groups: list[list[Window]] = []
    chunk: list[Window] = []
    for window in order:
        chunk.append(window)
        if rng is not None and sum(item.length for item in chunk) > SHUFFLE_ROWS:
            groups += _split(chunk, batch_rows)
            chunk = []
    groups += _split(chunk, batch_rows)
    if rng is not None:
        rng.shuffle(groups)
    for group in groups[skip:]:
        yield _collate(group, num_steps, remind=remind)


def _split(windows: list[Window], batch_rows: int) -> list[list[Window]]:
    """Groups of similar length."""
    groups: list[list[Window]] = []
    for window in sorted(windows, key=lambda item: item.length):
        if not groups or (len(groups[-1]) + 1) * window.length > batch_rows:
            groups.append([])
        groups[-1].append(window)
    return groups


def _collate(windows: Sequence[Window], num_steps: int, *, remind: bool) -> Batch:
    length = max(window.length for window in windows)
    corpus = windows[0].corpus
    shape = (len(windows), length, len(corpus.info.features), corpus.info.hidden_size)
    tokens = np.zeros((len(windows), length + 1), np.int64)
    features = np.zeros(shape, np.float32)
    selections = [_select(window, num_steps) for window in windows]
    selected = max(len(rows) for rows, _ in selections)
    rows = np.zeros((len(windows), selected), np.int64)
    weights = np.zeros((len(windows), selected, num_steps), np.float32)
    ids = np.full((len(windows), length + 1, MOST), -1)
    spoken = np.zeros(ids.shape, np.float32)
    for index, window in enumerate(windows):
        begin, item = window.start, window.conversation
        text = window.corpus.tokens(item)
        known = text[begin : begin + window.length + 1]
        tokens[index, : len(known)] = known
        if remind:
            said = reminders(text.tolist(), begin, len(known))
            ids[index, : len(known)], spoken[index, : len(known)] = said
        features[index, : window.length] = window.corpus.features(item)[begin : begin + window.length]
        chosen, weight = selections[index]
        rows[index, : len(chosen)], weights[index, : len(chosen)] = chosen, weight
    starts = torch.tensor([window.start for window in windows])
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(features),
        starts,
        torch.from_numpy(rows),
        torch.from_numpy(weights),
        torch.from_numpy(ids),
        torch.from_numpy(spoken),
        windows,
    )


def _select(window: Window, num_steps: int) -> tuple[list[int], list[list[float]]]:
    """Rows whose first prediction belongs to an answer, and for each step whether it still does."""
    rows: list[int] = []
    weights: list[list[float]] = []
    for answer, predicted in zip(window.conversation.answers, _answer_rows(window), strict=True):
        end = answer.end - window.start
        for row in predicted:
            rows.append(row)
            # the target's own distribution is that of row + step + 1, which must lie in the window
            last = min(end - 3, window.length - 2)
            weights.append([float(row + step <= last) for step in range(num_steps)])
    return rows, weights


def _answer_rows(window: Window) -> list[range]:
    """For each answer of the conversation, the rows of the window whose first prediction belongs to it."""
    return [
        range(max(answer.start - window.start - 1, 0), min(answer.end - window.start - 2, window.length - 1))
        for answer in window.conversation.answers
    ]
