"""A tokenizer's vocabulary as llguidance wants it: the bytes of every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from llguidance import LLTokenizer, TokenizerWrapper

    from flashlet.model.tokenizer import Tokenizer


class _Vocabulary:
    """What llguidance reads from a tokenizer."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: list[bytes], special_ids: Sequence[int], eos_token_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_token_id
        self.bos_token_id = None

    def __call__(self, text: str) -> list[int]:
        raise NotImplementedError("grammars do not force tokens, so no text is tokenized")


def build_vocabulary(tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """Index of the tokens; takes a fraction of a second.

    `vocab_size` is the model's. A token without text is never allowed, nor a special one unless a grammar
    names it; each of `eos_token_ids` (at least one) is allowed where the grammar may end.
    """
    tokens = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
    tokens = tokens[:vocab_size] + [b""] * (vocab_size - len(tokens))
    return index_tokens(tokens, sorted({*tokenizer.special_ids, *eos_token_ids}), eos_token_ids)


def index_tokens(
    tokens: list[bytes], special_ids: Sequence[int], eos_token_ids: Sequence[int]
) -> LLTokenizer:
    """Index of `tokens` by id."""
    from llguidance import LLTokenizer

    vocabulary = _Vocabulary(tokens, special_ids, eos_token_ids[0])
    return LLTokenizer(
        cast("TokenizerWrapper", vocabulary), n_vocab=len(tokens), eos_token=list(eos_token_ids)
    )
