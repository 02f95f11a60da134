"""Prompt lookup against a search that tries everything."""

from __future__ import annotations

import random

import pytest

from flashlet.serving.engine.ngram_index import MAX_CANDIDATES, MAX_MATCH, MIN_MATCH, Match, NgramIndex


def index_of(text: bytes) -> NgramIndex:
    index = NgramIndex()
    index.extend(text)
    return index


def brute_force(text: bytes, count: int) -> Match | None:
    best: tuple[int, int] | None = None
    ends = [end for end in range(MIN_MATCH, len(text)) if text[end - 2 : end] == text[-2:]]
    for end in ends[::-1][:MAX_CANDIDATES]:
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
    return Match(best[0], grown[len(text) :])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", None),
        (b"ab", None),
        (b"abcXab", Match(2, [*b"cXa"])),
        (b"abcX_abcY_abc", Match(4, [*b"Y_a"])),  # the latest of two equally long ones
        (b"Zabc1 abc2 Zabc", Match(4, [*b"1 a"])),  # a longer one before it
        (b"xababab", Match(4, [*b"aba"])),  # goes on as it began
        (b"aaaaaa", Match(5, [*b"aaa"])),
    ],
)
def test_the_longest_and_latest_match_counts(text: bytes, found: Match | None) -> None:
    assert index_of(text).find(text, 3) == found


@pytest.mark.parametrize("seed", range(20))
def test_growing_step_by_step_equals_searching(seed: int) -> None:
    rng = random.Random(seed)
    index, text = NgramIndex(), b""
    while len(text) < 400:
        text += bytes(rng.choices(b"abc"[: rng.randint(1, 3)], k=rng.randint(1, 5)))
        index.extend(text)
        assert index.find(text, 6) == brute_force(text, 6)
