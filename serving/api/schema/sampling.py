"""Request fields that chat and legacy completions share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from flashlet.serving.api.schema.base import (
    TokenIds,
    TruncatePromptTokens,
    WireModel,
    kind_of,
)
from flashlet.serving.api.schema.structured import StructuredFields
from flashlet.serving.engine.request import Drafting

MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_LOGIT_BIAS = 1024
MAX_TOP_LOGPROBS = 20

Milliseconds = Annotated[float, Field(gt=0, le=86_400_000)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True)]
Stop = Annotated[
    Annotated[StopString, Tag("string")] | Annotated[StopStrings, Tag("strings")],
    Discriminator(
        lambda value: kind_of(value, {str: "string", list: "strings"}),
        custom_error_type="stop_type",
        custom_error_message="Input should be a string or a list of strings",
    ),
]


class StreamOptions(WireModel):
    """Extras of a streamed answer."""

    include_usage: bool | None = Field(
        None, description="End with a chunk that carries `usage` and no choice."
    )
    continuous_usage_stats: bool | None = Field(None, description="`usage` so far in every chunk.")
    resumable: bool | None = Field(
        None, description="Number the events, and keep them for `GET /v1/streams/{id}` after a cut."
    )
    include_obfuscation: bool | None = Field(None, description="Accepted, without effect.")


class SamplingFields(StructuredFields):
    """How tokens are chosen and when an answer ends, and the fields that mean nothing here."""

    model: str | None = Field(None, description="A served model; the default one if omitted.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy.")] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1, description="0 or -1: all tokens.")] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")],
                Annotated[float, Field(ge=-100, le=100)],
            ],
            Field(
                max_length=MAX_LOGIT_BIAS, description="Token id, as a string, to what is added to its logit."
            ),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=128)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = Field(
        None, description="Score the prompt's tokens, each with so many alternatives. Not with `stream`."
    )
    truncate_prompt_tokens: TruncatePromptTokens = None
    return_token_ids: bool | None = Field(
        None, description="Answer with `prompt_token_ids` and `token_ids`, stop tokens included."
    )
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = Field(
        None,
        description="Lower numbers run first; default 0. The answer does not depend on it.",
    )
    max_ttft_ms: Milliseconds | None = Field(
        None, description="Answer with 503 if the first token does not come, or cannot be expected, by then."
    )
    deadline_ms: Milliseconds | None = Field(
        None, description="End the answer then, with finish_reason `length`; 503 if it should take longer."
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="Share cached prefixes only with requests of the same salt."
    )
    draft: Drafting | None = Field(
        None, description="Who drafts tokens for speculative decoding. The answer does not depend on it."
    )
    add_special_tokens: bool | None = Field(
        None, description="Let the tokenizer add its own, such as BOS. Default: only for plain text prompts."
    )

    user: str | None = Field(None, description="Accepted, without effect.")
    metadata: dict[str, Any] | None = Field(None, description="Accepted, without effect.")
    store: bool | None = Field(None, description="Accepted, without effect.")
    service_tier: str | None = Field(None, description="Accepted, without effect.")
    prompt_cache_key: str | None = Field(None, description="Accepted, without effect.")
    prompt_cache_retention: str | None = Field(None, description="Accepted, without effect.")
    safety_identifier: str | None = Field(None, description="Accepted, without effect.")
    verbosity: str | None = Field(None, description="Accepted, without effect.")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def num_choices(self) -> int:
        """Answers per prompt."""
        return self.n or 1
