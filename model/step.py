"""The ragged step: what one forward pass computes, and what comes back.

Prefill, decode and verification are the same thing: each sequence brings n >= 1 new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashlet.model.sampling import SampleRequest, TokenLogprobs

if TYPE_CHECKING:  # the command line imports this module, and starts faster without arrays
    import numpy as np
    from numpy.typing import NDArray

    from flashlet.kernels.cpu import TokenHistory


@dataclass(frozen=True, slots=True)
class DraftRequest:
    """Let the draft model follow a slice, and propose what may come after its accepted tokens."""

    num_tokens: int  # most tokens to propose; 0: only follow
    start: int  # the draft has followed the sequence from this position up to the slice, without a gap
    next_token: int | None = None  # the known token after the slice, where nothing is sampled
    least_confidence: float = 0.0  # product of the confidences below which nothing more is proposed
    history: TokenHistory | None = None  # the whole text so far: what followed before is likelier to follow


@dataclass(frozen=True, slots=True)
class SequenceSlice:
    """New tokens of one sequence, `token_ids` and then `proposed`: they take positions start, start + 1, ...

    K and V of positions 0 .. start - 1 already lie in the blocks of `block_table`, which also has room
    for the new ones: position p lives in block_table[p // block_size], slot p % block_size.

    A proposed token is accepted if it is the one that the sampler chooses at its position and all before it
    were accepted. With none proposed this is plain prefill or decoding.
    """

    token_ids: Sequence[int]  # n >= 1
    start: int
    block_table: Sequence[int]
    samples: Sequence[SampleRequest] = ()  # after token_ids[-1], after proposed[0], ...; none: mid-prompt
    proposed: Sequence[int] = ()  # drafted tokens to verify; len(samples) == 1 + len(proposed)
    draft: DraftRequest | None = None
    copied_block: int | None = None  # before anything is computed, copied to the block of position start
    logprob_targets: Sequence[int] = ()  # m <= n: score target i after the slice's token i (prompt logprobs)
    num_top_logprobs: int = 0  # alternatives to list for each target
    features: Sequence[int] = ()  # i: residual stream after i layers; num_layers + 1: after the final norm


@dataclass(frozen=True, slots=True)
class Step:
    """One call of the executor. A sequence appears at most once."""

    slices: Sequence[SequenceSlice]

    @property
    def num_tokens(self) -> int:
        """Rows of the forward pass."""
        return sum(len(item.token_ids) + len(item.proposed) for item in self.slices)


@dataclass(frozen=True, slots=True)
class SliceOutput:
    """Result for the slice at the same index of the step."""

    token_ids: tuple[int, ...] = ()  # sampled: the accepted proposals and one more; empty without samples
    logprobs: tuple[TokenLogprobs, ...] = ()  # one per accepted token, if asked for
    target_logprobs: tuple[TokenLogprobs, ...] = ()  # one per logprob target
    proposed: tuple[int, ...] = ()  # what the draft model expects after token_ids[-1]
    confidences: tuple[float, ...] = ()  # how sure it is of each, 0 .. 1 (sampler.confidence)
    features: NDArray[np.float32] | None = None  # [len(token_ids of the slice), features asked for, hidden]
