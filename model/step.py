"""The ragged step: what one forward pass computes, and what comes back.

Prefill, decode and verification are the same thing: each sequence brings n >= 1 new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flashlet.model.sampling import SampleRequest, TokenLogprobs


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """New tokens of one sequence: they take positions start .. start + len(token_ids) - 1.

    K and V of positions 0 .. start - 1 already lie in the blocks of `block_table`, which also has room
    for the new ones: position p lives in block_table[p // block_size], slot p % block_size.
    """

    token_ids: Sequence[int]  # n >= 1
    start: int
    block_table: Sequence[int]
    sample: SampleRequest | None = None  # None: the slice ends before the last known token
    logprob_targets: Sequence[int] = ()  # m <= n: score target i after the slice's token i (prompt logprobs)
    num_top_logprobs: int = 0  # alternatives to list for each target


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the executor. A sequence appears at most once."""

    slices: Sequence[SequenceSlice]

    @property
    def num_tokens(self) -> int:
        """Rows of the forward pass."""
        return sum(len(item.token_ids) for item in self.slices)


@dataclass(frozen=True, slots=True)
class SliceOutput:
    """Result for the slice at the same index of the step."""

    token_ids: tuple[int, ...] = ()  # accepted tokens: empty if nothing was to be sampled
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per accepted token, if asked for
    target_logprobs: tuple[TokenLogprobs, ...] = ()  # one per logprob target
