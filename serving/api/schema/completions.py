"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from flashlet.serving.api.schema.base import AnswerModel, Unsupported
from flashlet.serving.api.schema.logprobs import PromptLogprobs
from flashlet.serving.api.schema.prompt import Prompt, prompt_list
from flashlet.serving.api.schema.sampling import MAX_CHOICES, MAX_TOP_LOGPROBS, SamplingFields
from flashlet.serving.api.schema.usage import Usage


class CompletionRequest(SamplingFields):
    """Text or token ids to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The capital of France is", "max_tokens": 8}]}
    )

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1, description="Default 16.")] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = Field(None, description="Put the prompt before the answer.")
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None, description="Only the value of `n` is supported."
    )
    suffix: Unsupported = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """`prompt` as a list, whatever form it came in."""
        return prompt_list(self.prompt)


class LegacyLogprobs(AnswerModel):
    """Log probabilities in parallel lists; the first entry of a prompt is null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(AnswerModel):
    """One answer; `index` is prompt number x n + choice."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None


class Completion(AnswerModel):
    """A finished answer, or one chunk of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None
