"""Token counts on the wire."""

from __future__ import annotations

from flashlet.serving.api.schema.base import AnswerModel


class PromptTokensDetails(AnswerModel):
    """Parts of the prompt."""

    cached_tokens: int


class CompletionTokensDetails(AnswerModel):
    """Parts of the answer."""

    reasoning_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class Usage(AnswerModel):
    """Tokens read and written by one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
