"""POST /tokenize, POST /detokenize and GET /tokenizer_info."""

from __future__ import annotations

from pydantic import ConfigDict

from flashlet.serving.api.schema.base import AnswerModel, TokenIds, WireModel


class TokenizeRequest(WireModel):
    """Text to turn into token ids."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "Hello"}]})

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None


class Tokens(AnswerModel):
    """Token ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(WireModel):
    """Token ids to turn into text; special tokens are kept."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"tokens": [40]}]})

    model: str | None = None
    tokens: TokenIds


class DetokenizedText(AnswerModel):
    """Text of token ids."""

    prompt: str


class TokenizerInfo(AnswerModel):
    """What a client needs to build prompts itself."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str | None
    vocab_size: int
    max_model_len: int
