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


def prompt_logprobs(
    tokenizer: Tokenizer, scores: Sequence[TokenLogprobs | None], num_top: int
) -> list[dict[str, dict[str, Any]] | None]:
    """The `prompt_logprobs` list, in vLLM's shape: per token a mapping of ids, the prompt's own first.

    `rank` is null for a token that is not among the `num_top` most likely ones.
    """

    def entry(token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        text = token_text(tokenizer.token_bytes(token_id))
        return {"logprob": max(logprob, LOWEST), "rank": rank, "decoded_token": text}

    def entries(score: TokenLogprobs) -> dict[str, dict[str, Any]]:
        own = {str(score.token_id): entry(score.token_id, score.logprob, None)}
        top = enumerate(score.top[:num_top], 1)
        return own | {str(token_id): entry(token_id, value, rank) for rank, (token_id, value) in top}

    return [None if score is None else entries(score) for score in scores]


class LegacyLogprobs:
    """The parallel lists of a legacy completion; `take()` gives what came since the last call."""

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top  # alternatives to list, of those that a score brings
        self._offset = 0  # characters of text before the next token
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._new: dict[str, list[Any]] = {}
        self.take()

    def fork(self) -> LegacyLogprobs:
        """Another one that goes on from here; what is in both is kept once."""
        other = LegacyLogprobs(self._tokenizer, self._num_top)
        other._offset = self._offset
        other._decoder.setstate(self._decoder.getstate())
        other._new = {name: values.copy() for name, values in self._new.items()}
        return other

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
        top = {self.text_of(token_id): value for token_id, value in score.top[: self._num_top][::-1]}
        top[chosen] = score.logprob
        return ((text, max(value, LOWEST)) for text, value in sorted(top.items(), key=lambda item: -item[1]))
