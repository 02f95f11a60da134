"""Follows a grammar along one sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flashlet.serving.errors import GrammarError

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarConstraint:
    """A `TokenConstraint`: masks from llguidance, written in place. For the engine's thread only.

    A mask is valid until the next call of `masks`.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        stop_token_ids: Sequence[int],
        min_tokens: int,
        put_off: Sequence[int],
    ) -> None:
        self._matcher = matcher
        self._buffers: list[NDArray[np.uint32]] = []  # [ceil(vocab / 32)] each: one more than proposals
        self._num_words = (vocab_size + 31) // 32
        self._ends = frozenset((*eos_token_ids, *stop_token_ids))
        self._end_mask = self._bitmap(eos_token_ids)
        self._min_tokens = min_tokens
        self._before_min = ~self._bitmap({*stop_token_ids, *put_off}) if min_tokens else None
        self._after_min = ~self._bitmap(put_off) if put_off else None
        self._num_tokens = 0
        self._error = ""

    def masks(self, proposed: Sequence[int]) -> list[NDArray[np.uint32] | None]:
        """See `TokenConstraint`. A grammar over its limits allows EOS only, and `push` then raises."""
        mask = self._fill(0, self._matcher)
        if self._matcher.is_error() or not mask.any():
            self._error = self._matcher.get_error() or "it leads to a place where nothing can follow"
            mask[:] = self._end_mask
        masks: list[NDArray[np.uint32] | None] = [mask]
        if proposed and not self._error:
            masks += self._follow(proposed, mask)
        return masks

    def push(self, token_id: int) -> None:
        """See `TokenConstraint`."""
        if not self._error and not self._matcher.consume_token(token_id):
            self._error = self._matcher.get_error()
        if self._error:
            raise GrammarError(f"the grammar cannot be followed further: {self._error.splitlines()[0]}")
        self._num_tokens += 1

    def _follow(self, proposed: Sequence[int], mask: NDArray[np.uint32]) -> list[NDArray[np.uint32] | None]:
        """Masks after proposed tokens, on a copy: what is only proposed must not use up the limits."""
        matcher = self._matcher.deep_copy()
        masks: list[NDArray[np.uint32] | None] = []
        for row, token_id in enumerate(proposed, 1):
            allowed = int(mask[token_id // 32]) >> token_id % 32 & 1
            if not allowed or token_id in self._ends or not matcher.consume_token(token_id):
                break
            mask = self._fill(row, matcher)
            if matcher.is_error() or not mask.any():
                break
            masks.append(mask)
        return masks

    def _fill(self, row: int, matcher: LLMatcher) -> NDArray[np.uint32]:
        """Mask of what may come `row` tokens after the last one."""
        if row == len(self._buffers):
            self._buffers.append(np.zeros(self._num_words, np.uint32))
        mask = self._buffers[row]
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        keep = self._before_min if self._num_tokens + row < self._min_tokens else self._after_min
        if keep is not None and (kept := mask & keep).any():
            mask[:] = kept
        return mask

    def _bitmap(self, token_ids: Iterable[int]) -> NDArray[np.uint32]:
        bitmap = np.zeros(self._num_words, np.uint32)
        for token_id in token_ids:
            bitmap[token_id // 32] |= np.uint32(1 << token_id % 32)
        return bitmap
