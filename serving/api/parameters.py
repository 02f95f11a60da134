"""From a validated body to what the engine runs."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from flashlet.model.sampling import SamplingParams
from flashlet.serving.api.schema.sampling import SamplingFields
from flashlet.serving.engine.grammar import CompiledGrammar
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.errors import InvalidRequestError

GREEDY_BELOW = 1e-5  # so low a temperature is greedy, and dividing by it could overflow
_SEED_MASK = 2**64 - 1
_CHOSEN_SEED_BITS = 53  # of seeds that clients did not choose: such a number survives any JSON parser


def check_num_sequences(fields: SamplingFields, num_prompts: int, max_sequences: int) -> None:
    """Raise InvalidRequestError if prompts x n is more than one request may bring."""
    if num_prompts * fields.num_choices > max_sequences:
        raise InvalidRequestError(
            f"expected at most {max_sequences} sequences (prompts x n) per request, "
            f"got {num_prompts} x {fields.num_choices}",
            "prompt" if num_prompts > max_sequences else "n",
        )


def generation_requests(
    fields: SamplingFields,
    prompts: Sequence[tuple[int, ...]],
    *,
    continues_prompt: bool,
    max_tokens: int | None,
    logprobs: int | None,
    echo_logprobs: int | None = None,
    grammar: CompiledGrammar | None = None,
) -> list[GenerationRequest]:
    """One request per prompt and choice, in the order of their `index`.

    Choice i of every prompt uses seed + i, so that a prompt's answers do not depend on its batch. Choice 0
    alone scores the prompt, with the larger of `echo_logprobs` and the body's `prompt_logprobs` alternatives.

    The engine checks what depends on the model. Raises InvalidRequestError for what does not.
    """
    if fields.prompt_logprobs is not None and fields.stream:
        raise InvalidRequestError("prompt_logprobs: not available where stream is true", "prompt_logprobs")
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequestError("stream_options: only allowed where stream is true", "stream_options")
    seed = secrets.randbits(_CHOSEN_SEED_BITS) if fields.seed is None else fields.seed
    sampling = [
        _sampling_params(fields, logprobs, (seed + choice) & _SEED_MASK)
        for choice in range(fields.num_choices)
    ]
    scored = [number for number in (echo_logprobs, fields.prompt_logprobs) if number is not None]
    return [
        GenerationRequest(
            prompt=prompt,
            sampling=params,
            max_tokens=max_tokens,
            min_tokens=fields.min_tokens or 0,
            ignore_eos=bool(fields.ignore_eos),
            grammar=grammar,
            stop=fields.stop_strings,
            stop_token_ids=tuple(fields.stop_token_ids or ()),
            continues_prompt=continues_prompt,
            include_stop=bool(fields.include_stop_str_in_output),
            prompt_logprobs=max(scored, default=None) if choice == 0 else None,
            priority=fields.priority or 0,
            max_ttft_ms=fields.max_ttft_ms,
            deadline_ms=fields.deadline_ms,
            cache_salt=fields.cache_salt or "",
            draft=fields.draft or "auto",
        )
        for prompt in prompts
        for choice, params in enumerate(sampling)
    ]


def _sampling_params(fields: SamplingFields, logprobs: int | None, seed: int) -> SamplingParams:
    bias = {int(token): value for token, value in (fields.logit_bias or {}).items()}
    temperature = 1.0 if fields.temperature is None else fields.temperature
    return SamplingParams(
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_k=max(0, fields.top_k or 0),
        top_p=1.0 if fields.top_p is None else fields.top_p,
        min_p=fields.min_p or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        repetition_penalty=1.0 if fields.repetition_penalty is None else fields.repetition_penalty,
        logit_bias=tuple(sorted(bias.items())),
        seed=seed,
        logprobs=logprobs,
    )
