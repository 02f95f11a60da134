"""Windows of conversations and the batches that training makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from corpora import corpus_of

from flashlet.serving.distill.corpus import Answer
from flashlet.serving.distill.windows import batches, make_windows

WINDOW = 8


@pytest.mark.parametrize("end", range(10, 25))
def test_every_prediction_of_an_answer_is_in_one_window(tmp_path: Path, end: int) -> None:
    """A row predicts the next token but one; the last row of a window cannot be judged."""
    windows = make_windows([corpus_of(tmp_path, Answer("chat", 4, end))], False, WINDOW)
    found = [
        window.start + int(row)
        for batch in batches(windows, 256, 2)
        for window, rows, weights in zip(batch.windows, batch.rows, batch.weights, strict=True)
        for row in rows[weights[:, 0] > 0]
    ]
    assert sorted(found) == [row for row in range(3, end - 2) if row % WINDOW < WINDOW - 1]


def test_a_window_without_predictions_is_left_out(tmp_path: Path) -> None:
    """The answer ends with the second window's first tokens, which the first window's rows predict."""
    windows = make_windows([corpus_of(tmp_path, Answer("chat", 4, WINDOW + 2))], False, WINDOW)
    assert [window.start for window in windows] == [0]
