"""What the drafter knows about one sequence."""

from __future__ import annotations

from collections import abc
from typing import NamedTuple

from flashlet.kernels.cpu import Acceptance, TokenHistory
from flashlet.serving.engine.sequence import Sequence


class Match(NamedTuple):
    """An earlier place where the text went as it does now."""

    length: int  # tokens that agree
    tokens: list[int]  # what followed there


class SequenceDraft:
    """Proposals for the next tokens of a sequence, and how good earlier ones were."""

    __slots__ = (
        "by_confidence", "by_match", "by_position", "confidences", "followed_from", "history", "match",
        "model_tokens", "num_asked", "num_quiet", "uses_match",
    )  # fmt: skip

    def __init__(self, by_position: Acceptance, by_confidence: Acceptance, by_match: Acceptance) -> None:
        self.by_position = by_position  # of the draft model's proposals, where it stops early as well
        self.by_confidence = by_confidence  # of the same, by how sure the draft model is of each
        self.by_match = by_match  # of the n-grams', by length of the match
        self.history = TokenHistory()  # for the n-grams and for the draft model
        self.match: Match | None = None  # what the n-grams say about the tokens of this step
        self.model_tokens: tuple[int, ...] = ()  # what the draft model says about them
        self.confidences: list[int] = []  # how sure it is of each, as indices of `by_confidence`
        self.num_asked = 0  # tokens that it was asked for
        self.uses_match = False  # whether n-grams were clearly better in this step
        self.followed_from: int | None = None  # the draft model has seen everything since this position
        self.num_quiet = 0  # steps in a row in which drafting did not seem to pay

    def forget(self) -> None:
        """The sequence will be computed again: what the executor had for it is gone."""
        self.match = None
        self.model_tokens, self.confidences, self.num_asked = (), [], 0
        self.followed_from = None

    def look_up(self, sequence: Sequence, count: int) -> None:
        """Let the n-grams propose `count` tokens."""
        self.history.extend(sequence.tokens)
        found = self.history.match(count)
        self.match = Match(*found) if found else None

    def learn(self, tokens: abc.Sequence[int]) -> None:
        """Compare the proposals of both sources with `tokens`, which came.

        Where the draft model stopped before it was wrong, what it left out counts as wrong: asking did not
        give it.
        """
        guesses = self.model_tokens
        num_right = self.by_position.score(range(len(guesses)), guesses, tokens)
        if num_right == len(guesses) < min(self.num_asked, len(tokens)):
            self.by_position.record(num_right, hit=False)
        self.by_confidence.score(self.confidences, guesses, tokens)
        if self.match is not None:
            length, proposed = self.match
            self.by_match.score(range(length, length + len(proposed)), proposed, tokens)

    def best(
        self,
        sequence: Sequence,
        limit: int,
        num_drafted: int,
        promise: abc.Callable[[list[float]], float],
        margin: float,
    ) -> tuple[list[int], list[float]]:
        """At most `limit` proposals of the better source, and the chances that the first 1, 2, ... are right.

        `promise` says what such chances are worth; n-grams must promise `margin` times as much as the draft
        model. If that was not asked, it is taken to give what it mostly gives for `num_drafted` tokens: else
        n-grams would keep it from being asked.
        """
        ours = self._useful(sequence, self.model_tokens, limit)
        curve = self.by_confidence.survival(self.confidences[: len(ours)])
        self.uses_match = False
        if self.match is not None:
            theirs = self._useful(sequence, self.match.tokens, limit)
            other = self.by_match.survival(range(self.match.length, self.match.length + len(theirs)))
            believed = curve if ours else self.by_position.survival(range(min(num_drafted, limit)))
            self.uses_match = promise(other) >= margin * promise(believed)
            if self.uses_match or not ours:
                return theirs, other
        return ours, curve

    @staticmethod
    def _useful(sequence: Sequence, proposed: tuple[int, ...] | list[int], limit: int) -> list[int]:
        """Nothing is worth proposing behind a token that ends the sequence."""
        useful: list[int] = []
        for token_id in proposed[: max(limit, 0)]:
            useful.append(token_id)
            if token_id in sequence.stop_token_ids:
                break
        return useful
