"""POST /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from flashlet.serving.api.schema.base import AnswerModel, TruncatePromptTokens, WireModel
from flashlet.serving.api.schema.prompt import Prompt, prompt_list


class EmbeddingRequest(WireModel):
    """Texts to turn into vectors."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": "The cat sat on the mat."},
                {"input": ["first text", "second text"], "encoding_format": "base64"},
            ]
        }
    )

    model: str | None = Field(None, description="A served model; the default one if omitted.")
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32. Default: float."
    )
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="Keep only the first so many numbers, normalized again."
    )
    truncate_prompt_tokens: TruncatePromptTokens = None
    add_special_tokens: bool | None = Field(
        None, description="Let the tokenizer add its own, such as BOS, to texts. Default: true."
    )
    user: str | None = Field(None, description="Accepted, without effect.")

    @property
    def inputs(self) -> list[str | list[int]]:
        """`input` as a list, whatever form it came in."""
        return prompt_list(self.input)


class Embedding(AnswerModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Of length 1; a string if base64 was asked for.")


class EmbeddingUsage(AnswerModel):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(AnswerModel):
    """The vectors of all texts, in their order."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
