"""What decides the next token, given its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line imports this module, and starts faster without arrays
    import numpy as np
    from numpy.typing import NDArray


class NoTokenError(FloatingPointError):
    """No token can be chosen: the logits are not numbers, or masks leave nothing."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one sequence chooses its tokens.

    Order of application: penalties, `logit_bias`, suppressed and masked tokens, temperature, `top_k`,
    `top_p`, `min_p`, then argmax(logits / temperature + Gumbel noise keyed by (seed, position)).
    Ranges are checked at the API boundary.
    """

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0  # subtracted once from every token already generated
    frequency_penalty: float = 0.0  # subtracted per occurrence among the generated tokens
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of all tokens so far
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit), ids distinct
    seed: int = 0  # 64 bits, unsigned
    logprobs: int | None = None  # None: none; n: the chosen token's and the n most likely ones'

    @property
    def needs_history(self) -> bool:
        """Whether sampling looks at the tokens before."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Ask for the token that follows the last token of a slice.

    `position` is the index of the new token in its sequence; with the seed it keys the noise, so the
    choice is a function of the prefix alone.
    """

    params: SamplingParams
    position: int
    prompt: Sequence[int] = ()  # filled only if params.needs_history
    output: Sequence[int] = ()  # likewise
    suppressed: Sequence[int] = ()  # token ids that may not be chosen now (min_tokens)
    allowed: NDArray[np.uint32] | None = None  # bitmap [ceil(vocab / 32)], bit i % 32 of word i // 32


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural-log probabilities under the model's own distribution, before any sampling parameter."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # most likely first; ties by lower id
