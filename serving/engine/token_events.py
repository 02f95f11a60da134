"""Events about a sequence as it stands."""

from __future__ import annotations

from dataclasses import replace

from flashlet.model.sampling import TokenLogprobs
from flashlet.serving.engine.request import FinishReason, TokenEvent
from flashlet.serving.engine.sequence import Sequence


def token_event(
    sequence: Sequence,
    token_id: int | None = None,
    text: str = "",
    reason: FinishReason | None = None,
    logprobs: TokenLogprobs | None = None,
) -> TokenEvent:
    """The newest token of `sequence`, or without one only text and the end."""
    return TokenEvent(
        token_id=token_id,
        text=text,
        logprobs=logprobs,
        finish_reason=reason,
        stop=sequence.stop_checker.matched,
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        num_output_tokens=sequence.num_output_tokens,
        num_accepted=sequence.num_accepted,
        num_rejected=sequence.num_rejected,
    )


def prompt_event(sequence: Sequence) -> TokenEvent:
    """What was asked about the prompt, all of which is computed; the end, if nothing is to be generated."""
    event = token_event(sequence, reason="length" if sequence.max_tokens == 0 else None)
    return replace(
        event,
        prompt_logprobs=None if sequence.prompt_scores is None else (None, *sequence.prompt_scores),
        embedding=None if sequence.pooling is None else sequence.pooling.mean,
    )
