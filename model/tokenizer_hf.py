"""Tokenizers of Hugging Face folders: tokenizer.json, or a SentencePiece tokenizer.model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from flashlet.model.errors import ModelFormatError, UnsupportedModelError
from flashlet.model.sentencepiece_model import TokenType, read_sentencepiece_model
from flashlet.model.tokenizer import Tokenizer
from flashlet.model.tokenizer_backend import add_tokens, sentencepiece_bpe, set_template

_NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
_TOKEN_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


def load_hf_tokenizer(folder: Path) -> Tokenizer:
    """Tokenizer of `folder`; errors as `load_tokenizer`."""
    config = _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        backend = _read_backend(folder / "tokenizer.json")
        template_is_set = not {"add_bos_token", "add_eos_token"} & config.keys()
    elif (folder / "tokenizer.model").is_file():
        config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True} | config
        backend = _read_sentencepiece(folder / "tokenizer.model", config)
        template_is_set = False
    else:
        raise ModelFormatError(f"{folder}: expected tokenizer.json or tokenizer.model, found neither")
    _add_configured_tokens(backend, config)
    bos, eos, pad = (_named_token(backend, config, name) for name in ("bos_token", "eos_token", "pad_token"))
    if not template_is_set:
        set_template(
            backend,
            bos if config.get("add_bos_token") else None,
            eos if config.get("add_eos_token") else None,
        )
    byte_fallback, strip = _decoding(folder, backend)
    added = backend.get_added_tokens_decoder()
    return Tokenizer(
        backend,
        vocab_size=max(backend.get_vocab_size(), 1 + max(added, default=-1)),
        bos=bos,
        eos=eos,
        pad=pad,
        eos_token_ids=_end_ids(folder, eos),
        chat_template=_chat_template(folder, config),
        byte_fallback=byte_fallback,
        strip_leading_space=strip,
    )


def _read_json(path: Path) -> dict[str, Any]:
    """Object in the file `path`, empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelFormatError(f"{path}: expected JSON, found: {error}") from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _read_backend(path: Path) -> Backend:
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelFormatError(f"{path}: expected a tokenizer, found: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_sentencepiece(path: Path, config: Mapping[str, Any]) -> Backend:
    model = read_sentencepiece_model(path)
    unknown = [
        token for token, kind in zip(model.tokens, model.types, strict=True) if kind == TokenType.UNKNOWN
    ]
    if not config.get("add_prefix_space", model.add_dummy_prefix):
        prefix: Literal["never", "first", "always"] = "never"
    else:
        prefix = "always" if config.get("legacy", True) else "first"
    backend = sentencepiece_bpe(
        model.tokens,
        model.scores,
        [kind == TokenType.NORMAL for kind in model.types],
        unknown[0] if unknown else None,
        prefix=prefix,
    )
    tokens = list(zip(model.tokens, model.types, strict=True))
    add_tokens(
        backend,
        [token for token, kind in tokens if kind in (TokenType.CONTROL, TokenType.UNKNOWN)],
        [token for token, kind in tokens if kind == TokenType.USER_DEFINED],
    )
    return backend


def _add_configured_tokens(backend: Backend, config: Mapping[str, Any]) -> None:
    """Add the tokens that only the configuration names, in the order of their ids."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder", {})
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        if entry["content"] not in known:
            flags = {name: entry[name] for name in _TOKEN_FLAGS if name in entry}
            backend.add_tokens([AddedToken(entry["content"], **flags)])
            known.add(entry["content"])
    extra = [_text(token) for token in config.get("additional_special_tokens") or []]
    named = [_text(config[name]) for name in _NAMED_TOKENS if config.get(name)]
    add_tokens(backend, [token for token in named + extra if token not in known], [])


def _text(token: str | Mapping[str, Any]) -> str:
    """A token in a configuration is a string or an object with its content."""
    return token if isinstance(token, str) else str(token["content"])


def _named_token(backend: Backend, config: Mapping[str, Any], name: str) -> tuple[str, int] | None:
    if not config.get(name):
        return None
    text = _text(config[name])
    index = backend.token_to_id(text)
    return None if index is None else (text, index)


def _end_ids(folder: Path, eos: tuple[str, int] | None) -> tuple[int, ...]:
    """Ids that end an answer: the tokenizer's EOS and those of generation_config.json, else config.json."""
    generation = _read_json(folder / "generation_config.json").get("eos_token_id")
    ends = generation if generation is not None else _read_json(folder / "config.json").get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    ids = [eos[1]] if eos else []
    return tuple(dict.fromkeys(ids + [index for index in listed if isinstance(index, int)]))


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Source in chat_template.jinja, else in the configuration: one text, or the default of several."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def _decoding(folder: Path, backend: Backend) -> tuple[bool, bool]:
    """(SentencePiece, not byte-level tokens; whether a leading space comes off), from the decoder's steps."""
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {"type": "none"}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder])}
    if "ByteLevel" in steps:
        return False, False
    if "Metaspace" in steps:
        return True, steps["Metaspace"].get("prepend_scheme", "always") != "never"
    if "ByteFallback" in steps:
        return True, "Strip" in steps
    raise UnsupportedModelError(
        f"{folder}: a tokenizer with decoder {' + '.join(steps)} is not supported; "
        "supported are byte-level BPE and SentencePiece BPE"
    )
