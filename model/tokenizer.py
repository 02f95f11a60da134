"""Text to token ids and back, whole or token by token."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashlet.model.errors import ModelNotFoundError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def load_tokenizer(path: Path) -> Tokenizer:
    """Tokenizer of a GGUF file or of a Hugging Face folder.

    Raises ModelNotFoundError if there is nothing at `path`, ModelFormatError for damaged or missing data and
    UnsupportedModelError, by name, for a kind of tokenizer that is not built.
    """
    if path.is_dir():
        from flashlet.model.tokenizer_hf import load_hf_tokenizer

        return load_hf_tokenizer(path)
    if path.is_file():
        from flashlet.model.tokenizer_gguf import load_gguf_tokenizer

        return load_gguf_tokenizer(path)
    raise ModelNotFoundError(f"{path}: expected a GGUF file or a model folder, found nothing")


class Tokenizer:
    """A vocabulary with its rules; thread-safe.

    Decoding joins the bytes of the tokens and reads them as UTF-8 with U+FFFD for what is invalid, so a text
    does not depend on how it was cut into tokens. SentencePiece puts a space before a text; decoding takes
    it off again unless the ids continue an earlier text.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        vocab_size: int,
        bos: tuple[str, int] | None,
        eos: tuple[str, int] | None,
        pad: tuple[str, int] | None,
        eos_token_ids: tuple[int, ...],
        chat_template: str | None,
        byte_fallback: bool,
        strip_leading_space: bool,
    ) -> None:
        """`byte_fallback`: SentencePiece tokens (U+2581, <0x0A>) instead of the GPT-2 byte alphabet."""
        self.vocab_size = vocab_size
        self.bos_token = bos[0] if bos else None
        self.bos_token_id = bos[1] if bos else None
        self.eos_token = eos[0] if eos else None
        self.pad_token = pad[0] if pad else None
        self.pad_token_id = pad[1] if pad else None
        self.eos_token_ids = eos_token_ids  # every id that ends an answer, the main one first
        self.chat_template = chat_template  # Jinja source
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._backend = backend
        self._byte_fallback = byte_fallback
        self._strip_leading_space = strip_leading_space
        self._bytes = {index: token.content.encode() for index, token in added.items()}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of `text`; special tokens in it are taken as such, BOS comes first if the model wants one.

        Raises UnicodeEncodeError, a ValueError, for text with lone surrogates.
        """
        text.encode()
        # The batch call, because it alone releases the GIL: a long text must not hold up the server.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, *, continuation: bool = False
    ) -> str:
        """Text of `ids`; `continuation` keeps the space before the first word. Unknown ids have no text."""
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        data = b"".join(self.token_bytes(index) for index in ids if index not in skipped)
        if self._strip_leading_space and not continuation:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Raw bytes of one token, often only part of a character; a special token's are its name."""
        data = self._bytes.get(token_id)
        if data is None:
            data = self._bytes[token_id] = self._convert(token_id)
        return data

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, from which `load_tokenizer` makes an equal one."""
        self._backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "chat_template": self.chat_template,
        }
        known = {name: value for name, value in config.items() if value is not None}
        (folder / "tokenizer_config.json").write_text(json.dumps(known, indent=2) + "\n", "utf-8")

    def stream_decoder(self, *, continuation: bool = False) -> StreamDecoder:
        """Decoder for the tokens of one answer as they come; `continuation` as in `decode`."""
        return StreamDecoder(self, strip_leading_space=self._strip_leading_space and not continuation)

    def _convert(self, token_id: int) -> bytes:
        token = self._backend.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None
        if token is None:
            return b""
        if self._byte_fallback:
            byte = _BYTE_TOKEN.fullmatch(token)
            return bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
        try:
            return bytes(_BYTE_ALPHABET[character] for character in token)
        except KeyError:
            return token.encode()  # a padding entry of the vocabulary, in plain text


class StreamDecoder:
    """Decodes one token at a time; what `push` and `finish` return joins to `Tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, strip_leading_space: bool) -> None:
        self._tokenizer = tokenizer
        self._strip_leading_space = strip_leading_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Characters that `token_id` completes; "" for a special token or part of a character."""
        if token_id in self._tokenizer.special_ids:
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if self._strip_leading_space and data:
            data = data.removeprefix(b" ")
            self._strip_leading_space = False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What an unfinished character at the end turns into; the decoder takes no more tokens."""
        return self._utf8.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()
