"""Tokenizers from GGUF metadata (`tokenizer.ggml.*`): byte-level BPE and SentencePiece BPE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashlet.model.errors import ModelFormatError, UnsupportedModelError
from flashlet.model.gguf_metadata import read_gguf_metadata
from flashlet.model.pre_tokenizers import pre_tokenizer
from flashlet.model.sentencepiece_model import TokenType
from flashlet.model.tokenizer import Tokenizer
from flashlet.model.tokenizer_backend import add_tokens, byte_level_bpe, sentencepiece_bpe, set_template

# Chat formats end a turn with a token of their own, and files often name only one of two end tokens.
_END_TOKENS = frozenset(
    ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>")
)
NO_TOKEN = 0xFFFFFFFF


def load_gguf_tokenizer(path: Path) -> Tokenizer:
    """Tokenizer of the GGUF file `path`; errors as `load_tokenizer`."""
    return _GgufTokenizer(path.name, read_gguf_metadata(path)).build()


class _GgufTokenizer:
    """Checked access to the tokenizer's metadata."""

    def __init__(self, file: str, metadata: Mapping[str, Any]) -> None:
        self._file = file
        self._metadata = metadata
        self._tokens: list[str] = self._list("tokens", None)
        count = len(self._tokens)
        if "tokenizer.ggml.token_type" in metadata:
            self._types = self._list("token_type", count)
        else:
            self._types = [TokenType.NORMAL] * count

    def build(self) -> Tokenizer:
        kind = self._get("model", str, None)
        if kind == "gpt2":
            rules = pre_tokenizer(self._get("pre", str, "default"))
            backend = byte_level_bpe(self._tokens, self._list("merges", None), rules)
            add_bos, strip = rules.add_bos, False
        elif kind == "llama":
            strip = self._get("add_space_prefix", bool, True)
            unknown = self._token("unknown_token_id")
            backend = sentencepiece_bpe(
                self._tokens,
                self._list("scores", len(self._tokens)),
                [kind == TokenType.NORMAL for kind in self._types],
                unknown[0] if unknown else None,
                prefix="always" if strip else "never",
            )
            add_bos = True
        else:
            raise UnsupportedModelError(
                f"{self._file}: tokenizer model {kind!r} is not supported; supported are gpt2 and llama"
            )
        special = self._of_type(TokenType.CONTROL, TokenType.UNKNOWN)
        add_tokens(backend, special, self._of_type(TokenType.USER_DEFINED))
        bos, eos, pad = (self._token(f"{name}_token_id") for name in ("bos", "eos", "padding"))
        set_template(
            backend,
            bos if self._get("add_bos_token", bool, add_bos) else None,
            eos if self._get("add_eos_token", bool, False) else None,
        )
        return Tokenizer(
            backend,
            vocab_size=len(self._tokens),
            bos=bos,
            eos=eos,
            pad=pad,
            eos_token_ids=self._end_ids(special),
            chat_template=self._chat_template(),
            byte_fallback=kind == "llama",
            strip_leading_space=strip,
        )

    def _end_ids(self, special: Sequence[str]) -> tuple[int, ...]:
        """Ids that end an answer, the file's EOS first."""
        named = [self._token(f"{name}_token_id") for name in ("eos", "eot", "eom")]
        ids = [token[1] for token in named if token]
        ends = _END_TOKENS.intersection(special)
        return tuple(dict.fromkeys(ids + [i for i, token in enumerate(self._tokens) if token in ends]))

    def _chat_template(self) -> str | None:
        template = self._metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template else None

    def _of_type(self, *types: TokenType) -> list[str]:
        return [token for token, kind in zip(self._tokens, self._types, strict=True) if kind in types]

    def _token(self, key: str) -> tuple[str, int] | None:
        """(text, id) of the token that `key` names, None where the file has no such key."""
        index = self._get(key, int, NO_TOKEN)
        if index in (-1, NO_TOKEN):
            return None
        if not 0 <= index < len(self._tokens):
            raise self._error(key, f"an id below {len(self._tokens)}", index)
        return self._tokens[index], index

    def _get(self, key: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, kind):
            raise self._error(key, f"a value of type {kind.__name__}", value)
        return value

    def _list(self, key: str, count: int | None) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None or isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
            raise self._error(key, "a list", value)
        if count is not None and len(value) != count:
            raise self._error(key, f"{count} entries", len(value))
        return value if isinstance(value, list) else value.tolist()

    def _error(self, key: str, expected: str, found: object) -> ModelFormatError:
        return ModelFormatError(f"{self._file}: tokenizer.ggml.{key}: expected {expected}, found {found!r}")
