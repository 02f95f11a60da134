"""What a text says about its next tokens, against searches that try everything."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from flashlet.kernels.cpu import TokenHistory

MIN_MATCH, MAX_MATCH, MAX_MATCHES = 2, TokenHistory.MAX_MATCH, 8

Match = tuple[int, list[int]]


def history_of(tokens: list[int]) -> TokenHistory:
    history = TokenHistory()
    history.extend(tokens)
    return history


def expected_successors(text: list[int], behind: list[int]) -> dict[int, float]:
    """By the definition (docs/numerics.md, "history"): the latest 16 places of the last token."""
    whole = text + behind
    lengths: dict[int, int] = {}
    contexts: dict[int, int] = {}
    counts: dict[int, int] = {}
    places = [i for i in range(len(text) - 1) if text[i] == whole[-1]]
    for place in reversed(places[-16:]):
        length = 1
        while length < min(16, place + 1, len(whole)) and text[place - length] == whole[-1 - length]:
            length += 1
        pairs = zip(text[max(0, place - 8) : place][::-1], whole[-2::-1], strict=False)
        token = text[place + 1]
        contexts[token] = max(contexts.get(token, 0), sum(a == b for a, b in pairs))
        lengths[token] = max(lengths.get(token, 0), length)
        counts[token] = counts.get(token, 0) + 1
    return {
        token: 1.08 * math.log(lengths[token])
        + 0.21 * contexts[token]
        + 0.83 * math.log(counts[token])
        - 0.68 * math.log(len(counts))
        - 0.27
        for token in counts
    }


def expected_match(text: list[int], count: int) -> Match | None:
    """By the definition: the longest of the latest 8 places of the last two tokens."""
    best: tuple[int, int] | None = None
    ends = [end for end in range(MIN_MATCH, len(text)) if text[end - 2 : end] == text[-2:]]
    for end in ends[::-1][:MAX_MATCHES]:
        length = MIN_MATCH
        while length < min(MAX_MATCH, end) and text[end - 1 - length] == text[-1 - length]:
            length += 1
        if best is None or length > best[0]:
            best = length, end
    if best is None:
        return None
    grown = [*text]
    for i in range(count):
        grown.append(grown[best[1] + i])
    return best[0], grown[len(text) :]


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
                rng.integers(0, kinds, 20).tolist(),
            ):
                found = dict(history_of(text).successors(behind))
                expected = expected_successors(text, behind)
                assert found == pytest.approx(expected, abs=1e-5)
                seen += len(found)
    assert seen > 100


@pytest.mark.parametrize("period", [1, 3, 7, 20])
def test_successors_in_a_text_that_repeats_itself_agree_in_many_tokens(period: int) -> None:
    text = list(range(period)) * 12
    for length in (2, period + 3, 4 * period + 1, len(text)):
        for behind in ([], text[length : length + 3]):
            found = dict(history_of(text[:length]).successors(behind))
            assert found == pytest.approx(expected_successors(text[:length], behind), abs=1e-5)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", None),
        (b"a", None),
        (b"ab", None),
        (b"abcXab", (2, [*b"cXa"])),
        (b"abcX_abcY_abc", (4, [*b"Y_a"])),  # the latest of two equally long ones
        (b"Zabc1 abc2 Zabc", (4, [*b"1 a"])),  # a longer one before it
        (b"xababab", (4, [*b"aba"])),  # goes on as it began
        (b"aaaaaa", (5, [*b"aaa"])),
    ],
)
def test_the_longest_and_latest_match_counts(text: bytes, found: Match | None) -> None:
    assert history_of([*text]).match(3) == found


@pytest.mark.parametrize("seed", range(20))
def test_matches_of_a_growing_text_equal_those_of_a_search(seed: int) -> None:
    rng = random.Random(seed)
    history, text = TokenHistory(), list[int]()
    while len(text) < 400:
        text += rng.choices(b"abc"[: rng.randint(1, 3)], k=rng.randint(1, 5))
        history.extend(text)
        assert history.match(6) == expected_match(text, 6)


def test_a_match_behind_many_occurrences_of_the_last_token_alone_is_found_up_to_a_bound() -> None:
    def text(between: int) -> list[int]:
        return [1, 2, 3, *(token for i in range(between) for token in (10 + i, 2)), 1, 2]

    assert history_of(text(1000)).match(1) == (2, [3])
    assert history_of(text(2000)).match(1) is None


def test_a_history_takes_in_only_what_is_new() -> None:
    history = history_of([1, 2, 3])
    history.extend([9, 9, 9, 1])  # the beginning is known, whatever is given for it
    assert len(history) == 4
    assert [token for token, _ in history.successors([])] == [2]
    with pytest.raises(ValueError, match="expected 0 or more"):
        history.extend([1, 2, 3, 1, -5])
    assert TokenHistory().successors([7]) == []
