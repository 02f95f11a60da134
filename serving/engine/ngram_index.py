"""Prompt lookup: where the end of a text has occurred before, and what followed there."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

MIN_MATCH = 2  # tokens; one token alone says too little
MAX_MATCH = 16  # longer matches are not told apart
MAX_CANDIDATES = 8  # earlier occurrences that are compared


class Match(NamedTuple):
    """An earlier occurrence of the last tokens of a text."""

    length: int  # tokens that agree, MIN_MATCH .. MAX_MATCH
    tokens: list[int]  # what followed there


class NgramIndex:
    """Finds the longest earlier occurrence of the end of a text that only grows.

    The match finder of LZ77 compressors: positions with the same last two tokens are chained, latest first.
    A token costs one entry in a table, a search a bounded number of comparisons, whatever the length.
    """

    def __init__(self) -> None:
        self._latest: dict[tuple[int, int], int] = {}  # pair of tokens -> end of its latest occurrence
        self._earlier = array("i", (0, 0))  # [end]: end of the previous occurrence of the same pair, or 0

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in what is new at the end of `tokens`, the whole text so far."""
        latest, earlier = self._latest, self._earlier
        for end in range(len(earlier), len(tokens) + 1):
            pair = (tokens[end - 2], tokens[end - 1])
            earlier.append(latest.get(pair, 0))
            latest[pair] = end

    def find(self, tokens: Sequence[int], count: int) -> Match | None:
        """The longest match of the end of `tokens`, all taken in, and `count` tokens after it.

        Of equally long ones the latest counts. Where the text ends within `count` tokens of the match, it
        goes on as if it repeated itself from there.
        """
        length = len(tokens)
        end = self._earlier[length] if length >= MIN_MATCH else 0
        best_end = best = 0
        for _ in range(MAX_CANDIDATES):
            if end == 0 or best == MAX_MATCH:
                break
            agreeing = _agreeing(tokens, end)
            if agreeing > best:
                best_end, best = end, agreeing
            end = self._earlier[end]
        if best == 0:
            return None
        following = list(tokens[best_end : best_end + count])
        period = length - best_end
        for i in range(len(following), count):
            following.append(following[i - period])
        return Match(best, following)


def _agreeing(tokens: Sequence[int], end: int) -> int:
    """How many tokens before `end` equal the last ones, given that two do."""
    last = len(tokens)
    count = MIN_MATCH
    while count < min(MAX_MATCH, end) and tokens[end - 1 - count] == tokens[last - 1 - count]:
        count += 1
    return count
