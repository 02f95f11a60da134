"""Log probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from flashlet.model.sampling import TokenLogprobs
from flashlet.model.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no -inf


def token_text(token_bytes: bytes) -> str:
    r"""Text of one token; part of a character is written as bytes:\xe2\x80, as OpenAI does."""
    try:
        return token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token_bytes)


def chat_logprobs(tokenizer: Tokenizer, scores: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """The `logprobs` object of a chat choice or chunk."""
    return {"content": [_chat_entry(tokenizer, score) for score in scores], "refusal": None}


def _chat_entry(tokenizer: Tokenizer, score: TokenLogprobs) -> dict[str, Any]:
    entry = _chat_token(tokenizer, score.token_id, score.logprob)
    entry["top_logprobs"] = [_chat_token(tokenizer, token_id, value) for token_id, value in score.top]
    return entry


def _chat_token(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    token_bytes = tokenizer.token_bytes(token_id)
    return {
        "token": token_text(token_bytes),
        "logprob": max(logprob, LOWEST),
        "bytes": list(token_bytes),
    }


class LegacyLogprobs:
    """The parallel lists of a legacy completion; `take()` gives what came since the last call."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0  # characters of text before the next token
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._new: dict[str, list[Any]] = {}
        self.take()

    def take(self) -> dict[str, list[Any]]:
        """The lists so far, and start new ones."""
        new = self._new
        self._new = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        return new

    def add(self, token_id: int, score: TokenLogprobs | None, in_text: bool = True) -> None:
        """Add one token. `score` is None for a prompt's first; `in_text`: whether the text contains it."""
        token_bytes = self._tokenizer.token_bytes(token_id)
        self._new["tokens"].append(token_text(token_bytes))
        self._new["token_logprobs"].append(None if score is None else max(score.logprob, LOWEST))
        self._new["top_logprobs"].append(None if score is None else dict(self._top(score)))
        self._new["text_offset"].append(self._offset)
        if in_text:
            self._offset += len(self._decoder.decode(token_bytes))

    def text_of(self, token_id: int) -> str:
        """Text of one token, as the lists write it."""
        return token_text(self._tokenizer.token_bytes(token_id))

    def _top(self, score: TokenLogprobs) -> Iterator[tuple[str, float]]:
        """Alternatives by text, most likely first; of tokens with one text the chosen or likeliest counts."""
        chosen = self.text_of(score.token_id)
        top = {self.text_of(token_id): value for token_id, value in score.top[::-1]}
        top[chosen] = score.logprob
        return ((text, max(value, LOWEST)) for text, value in sorted(top.items(), key=lambda item: -item[1]))
