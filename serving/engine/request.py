"""What the HTTP side and the engine exchange: one generation request in, token events out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from flashlet.model.sampling import SamplingParams, TokenLogprobs

if TYPE_CHECKING:  # the command line imports this module, and starts faster without arrays
    import numpy as np
    from numpy.typing import NDArray

    from flashlet.serving.engine.grammar import CompiledGrammar

FinishReason = Literal["stop", "length"]
Drafting = Literal["auto", "none", "ngram"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One sequence to generate. An API request with n > 1 or several prompts becomes several of these."""

    prompt: tuple[int, ...]  # token ids, at least one
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None  # None: up to the context length; 0: score the prompt only
    min_tokens: int = 0  # stop tokens are suppressed and stop strings ignored before that many
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    continues_prompt: bool = False  # the answer is put behind the prompt's text: keep a first word's space
    include_stop: bool = False  # keep the stop string or stop token's text in the answer
    prompt_logprobs: int | None = None  # None: off; n: score every prompt token, with n alternatives
    grammar: CompiledGrammar | None = None  # what the whole answer must match
    free_start: bool = False  # the grammar begins with free text: drop a first word's space all the same
    stops_before: str | int | None = None  # text or special token after which no `stop` or stop id counts
    embed: bool = False  # bring the mean of the prompt's final hidden states
    priority: int = 0  # lower ones start earlier and are preempted later; the tokens do not depend on it
    max_ttft_ms: float | None = None  # milliseconds from arrival to the first token, or an error
    deadline_ms: float | None = None  # the same to the end; then the answer is cut
    cache_salt: str = ""  # the prefix cache is shared among equal salts only
    draft: Drafting = "auto"  # who proposes tokens; auto: the engine's choice. The tokens do not depend on it


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One generated token, or the end. Text may lag behind tokens: half a character or a possible stop
    string is held back; the concatenated `text` of all events is exactly the answer.
    """

    token_id: int | None  # None: an event that only carries text, prompt scores or the end
    text: str
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None  # set on the last event, and only there
    stop: str | None = None  # the stop string that ended the answer
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens whose KV came from the prefix cache
    num_output_tokens: int = 0  # so far, this one included
    num_accepted: int = 0  # of them, those that had been proposed
    num_rejected: int = 0  # proposed tokens so far that were wrong
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = (
        None  # once, before the first token; entry 0 is None
    )
    embedding: NDArray[np.float64] | None = None  # [hidden]; once, before the first token
