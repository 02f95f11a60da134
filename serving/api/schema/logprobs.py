"""Log probabilities of a prompt, in the shape of vLLM."""

from __future__ import annotations

from pydantic import Field

from flashlet.serving.api.schema.base import AnswerModel


class PromptLogprob(AnswerModel):
    """One token at one place of the prompt: the prompt's own, or an alternative."""

    logprob: float
    rank: int | None = Field(description="From 1; null for a token that is not among the alternatives.")
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]  # by token id; null for the first token
