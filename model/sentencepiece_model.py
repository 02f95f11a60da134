"""The vocabulary of a SentencePiece `tokenizer.model`: a protobuf message, read field by field.

Field numbers: sentencepiece_model.proto. The sentencepiece package does not tell user-defined pieces, the
model's type or its normalization, and they decide which text becomes which ids.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from flashlet.model.errors import ModelFormatError, UnsupportedModelError

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of ModelProto
_BPE = 2  # TrainerSpec.model_type
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class TokenType(IntEnum):
    """Kind of a token, in SentencePiece files and in GGUF files alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """Tokens by id; `scores` rank the merges, highest first."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    add_dummy_prefix: bool  # a space goes before every text


def read_sentencepiece_model(path: Path) -> SentencePieceModel:
    """Parse `path`; raises ModelFormatError if damaged, UnsupportedModelError if not plain BPE."""
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    specs: dict[int, dict[int, bytes | int]] = {_TRAINER: {}, _NORMALIZER: {}}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == _PIECES and isinstance(value, bytes):
                piece = dict(_fields(value))
                tokens.append(bytes(piece[1]).decode())
                scores.append(*struct.unpack("<f", bytes(piece.get(2, b"\0\0\0\0"))))
                types.append(int(piece.get(3, TokenType.NORMAL)))
            elif number in specs and isinstance(value, bytes):
                specs[number] = dict(_fields(value))
    except (IndexError, KeyError, ValueError, TypeError, struct.error) as error:
        raise ModelFormatError(f"{path}: expected a SentencePiece model, found damaged data") from error
    if not tokens:
        raise ModelFormatError(f"{path}: expected a SentencePiece model, found no pieces")
    _check_supported(path, specs[_TRAINER], specs[_NORMALIZER])
    return SentencePieceModel(tokens, scores, types, bool(specs[_NORMALIZER].get(3, True)))


def _check_supported(path: Path, trainer: dict[int, bytes | int], normalizer: dict[int, bytes | int]) -> None:
    unsupported = {
        "a model type other than BPE": trainer.get(3, 1) != _BPE,
        "white space as suffix": trainer.get(24, 0),
        "a normalization table": normalizer.get(2, b""),
        "removal of extra white space": normalizer.get(4, 1),
        "unescaped white space": not normalizer.get(5, 1),
    }
    for what, found in unsupported.items():
        if found:
            raise UnsupportedModelError(f"{path}: SentencePiece models with {what} are not supported")


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) of one protobuf message; values as int or as raw bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = _varint(data, position)
        else:
            length = {_FIXED32: 4, _FIXED64: 8}[kind]
        if position + length > len(data):
            raise ValueError(f"field of {length} bytes at {position}")
        yield tag >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("varint of more than ten bytes")
