"""What limits the tokens of a sequence to a grammar, as the scheduler sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TokenConstraint(Protocol):
    """State of one grammar over one sequence. Called by the engine's thread only.

    A mask always allows a token: `min_tokens` and `ignore_eos` are part of the constraint, which suppresses
    stop tokens only where the grammar can go on. So nothing else may be suppressed.
    """

    def masks(self, proposed: Sequence[int]) -> list[NDArray[np.uint32] | None]:
        """Bitmaps of the tokens allowed next, then after proposed[0], after proposed[1], and so on.

        Ends before the first proposed token that is not allowed, so the result has 1 .. 1 + len(proposed)
        entries. None: every token is allowed there. The state does not change, and nothing is raised.
        """

    def push(self, token_id: int) -> None:
        """Advance by a token that the last mask allowed.

        Raises GrammarError, which ends this sequence, if the grammar went over a limit, then or in a mask.
        """
