"""From the hidden states of a text to one vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports the engine, and starts faster without arrays
    import numpy as np
    from numpy.typing import NDArray


class MeanPooling:
    """Mean of the hidden states of a sequence, which come in chunks of any size.

    The rows are added in float64 one by one, so the result does not depend on the chunks to the bit.
    """

    def __init__(self, feature: int) -> None:
        self.feature = feature  # which hidden state, as SequenceSlice.features counts them
        self.clear()

    def clear(self) -> None:
        """Start again."""
        self._sum: NDArray[np.float64] | None = None  # [hidden]
        self._count = 0

    def push(self, features: NDArray[np.float32]) -> None:
        """Add the next tokens' hidden states, [tokens, 1, hidden]."""
        for row in features[:, 0].astype("float64"):
            self._sum = row if self._sum is None else self._sum + row
            self._count += 1

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of all rows so far, [hidden]; there must be one."""
        assert self._sum is not None
        return self._sum / self._count
