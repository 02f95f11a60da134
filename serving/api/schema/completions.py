"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from flashlet.serving.api.schema.base import AnswerModel, TokenIds, Unsupported, kind_of
from flashlet.serving.api.schema.sampling import MAX_TOP_LOGPROBS, SamplingFields
from flashlet.serving.api.schema.usage import Usage

MAX_PROMPTS = 512


def _prompt_kind(value: Any) -> str | None:
    if isinstance(value, list):
        return kind_of(value[0], {str: "strings", int: "ids", list: "id_lists"}) if value else "strings"
    return "string" if isinstance(value, str) else None


_Strings = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
_IdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("string")]
    | Annotated[_Strings, Tag("strings")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[_IdLists, Tag("id_lists")],
    Discriminator(
        _prompt_kind,
        custom_error_type="prompt_type",
        custom_error_message="Input should be text, a list of texts, token ids or a list of token id lists",
    ),
]


class CompletionRequest(SamplingFields):
    """Text or token ids to continue."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "The capital of France is", "max_tokens": 8}]}
    )

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1, description="Default 16.")] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = Field(None, description="Put the prompt before the answer.")
    best_of: int | None = Field(None, description="Only the value of `n` is supported.")
    suffix: Unsupported = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """`prompt` as a list, whatever form it came in."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)


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


class Completion(AnswerModel):
    """A finished answer, or one chunk of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None
