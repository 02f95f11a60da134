"""Damaged and hostile GGUF files: a typed error with expected and found, quickly, and nothing else."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flashlet.model.errors import FlashletError, ModelFormatError, UnsupportedModelError
from flashlet.model.gguf_header import read_gguf_header
from flashlet.model.parameters import parameter_shapes
from flashlet.model.weights import open_weights

UINT8, UINT32, STRING, ARRAY = 0, 4, 8, 9
F32 = 0


@pytest.fixture
def whole(config, random_weights, write_gguf) -> bytes:
    return write_gguf(config, random_weights(config)).read_bytes()


def read_everything(path: Path) -> None:
    source = open_weights(path)
    for name, shape in parameter_shapes(source.config).items():
        source.tensor(name, shape)
    source.close()


def test_the_undamaged_file_is_read(whole, tmp_path):
    path = tmp_path / "whole.gguf"
    path.write_bytes(whole)
    read_everything(path)


def test_truncation_anywhere_is_found(whole, tmp_path):
    path = tmp_path / "cut.gguf"
    header_end = whole.index(b"output_norm.weight") + 200
    lengths = [
        *range(0, header_end, 23),
        *np.linspace(header_end, len(whole) - 1, 30, dtype=int),
        len(whole) - 1,
    ]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError, match=r"expected.*found"):
            open_weights(path)


def test_flipped_header_bytes_raise_typed_errors_or_change_a_value(whole, tmp_path):
    path = tmp_path / "flipped.gguf"
    generator = random.Random(11)
    header_end = whole.index(b"output_norm.weight") + 100
    damaged = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(generator.choice([1, 1, 4])):
            value = generator.choice([0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)])
            content[generator.randrange(header_end)] = value
        path.write_bytes(content)
        try:
            read_everything(path)
        except FlashletError as error:
            assert str(error)
            damaged += 1
    assert damaged > 100


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf_bytes(
    tensors: Sequence[bytes] = (), keys: Sequence[bytes] = (), data: bytes = b"", **fields: int
) -> bytes:
    counts = fields.get("num_tensors", len(tensors)), fields.get("num_keys", len(keys))
    header = b"GGUF" + struct.pack("<IQQ", fields.get("version", 3), *counts)
    header += b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data


def tensor_row(name: str, shape: list[int], offset: int, kind: int = F32) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return string(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"expected a header that goes on to byte 4, found 0"),
    "other magic": (b"GGML" + bytes(60), "magic"),
    "version 1": (gguf_bytes(version=1), "version 2 or 3, found 1"),
    "2^63 tensors": (gguf_bytes(num_tensors=2**63), "at most 1048576 tensors"),
    "2^20 tensors": (gguf_bytes(num_tensors=2**20), "goes on to byte"),
    "2^40 keys": (gguf_bytes(num_keys=2**40), "at most 1048576 metadata keys"),
    "huge key": (gguf_bytes(keys=[struct.pack("<Q", 2**62)]), "string of at most"),
    "huge array": (
        gguf_bytes(keys=[string("a") + struct.pack("<IIQ", ARRAY, UINT8, 2**60)]),
        "flat list of at most",
    ),
    "array beyond the end": (
        gguf_bytes(keys=[string("a") + struct.pack("<IIQ", ARRAY, UINT8, 2**21)]),
        "goes on to byte",
    ),
    "strings beyond the end": (
        gguf_bytes(keys=[string("a") + struct.pack("<IIQ", ARRAY, STRING, 2**21)]),
        "goes on to byte",
    ),
    "nested arrays": (
        gguf_bytes(keys=[string("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1) * 2000]),
        "flat list",
    ),
    "unknown metadata type": (
        gguf_bytes(keys=[string("a") + struct.pack("<II", 13, 0)]),
        "0 to 12, found 13",
    ),
    "twice the same key": (gguf_bytes(keys=[string("a") + struct.pack("<II", UINT32, 0)] * 2), "'a' twice"),
    "not UTF-8": (gguf_bytes(keys=[struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", UINT32, 0)]), "UTF-8"),
    "a list's string not UTF-8": (
        gguf_bytes(keys=[string("a") + struct.pack("<IIQQ", ARRAY, STRING, 1, 1) + b"\xff"]),
        "UTF-8",
    ),
    "a list's string of 2^63 bytes": (
        gguf_bytes(keys=[string("a") + struct.pack("<IIQQ", ARRAY, STRING, 2, 2**63)]),
        "string of at most",
    ),
    "a list's string beyond the end": (
        gguf_bytes(keys=[string("a") + struct.pack("<IIQQ", ARRAY, STRING, 2, 2**20)]),
        "goes on to byte",
    ),
    "alignment 48": (
        gguf_bytes(keys=[string("general.alignment") + struct.pack("<II", UINT32, 48)]),
        "power of two, found 48",
    ),
    "twice the same tensor": (
        gguf_bytes([tensor_row("t", [4], 0), tensor_row("t", [4], 32)], data=bytes(64)),
        "'t' twice",
    ),
    "overlap": (
        gguf_bytes([tensor_row("t", [16], 0), tensor_row("u", [4], 32)], data=bytes(64)),
        "expected data from byte",
    ),
    "beyond the end": (gguf_bytes([tensor_row("t", [64], 0)], data=bytes(64)), "data up to byte"),
    "offset 2^64 - 32": (gguf_bytes([tensor_row("t", [4], 2**64 - 32)], data=bytes(64)), "data up to byte"),
    "offset not aligned": (gguf_bytes([tensor_row("t", [4], 4)], data=bytes(64)), "multiple of 32, found 4"),
    "size 2^128": (gguf_bytes([tensor_row("t", [2**64 - 1] * 2, 0)], data=bytes(64)), "data up to byte"),
    "no size": (gguf_bytes([tensor_row("t", [0], 0)]), "multiple of 1 numbers"),
    "no dimensions": (gguf_bytes([tensor_row("t", [], 0)]), "1 to 4 dimensions, found 0"),
    "nine dimensions": (gguf_bytes([tensor_row("t", [1] * 9, 0)]), "1 to 4 dimensions, found 9"),
    "broken block": (
        gguf_bytes([tensor_row("t", [31], 0, kind=8)], data=bytes(64)),
        "multiple of 32 numbers",
    ),
    "no architecture": (gguf_bytes(), "general.architecture: expected str, found none"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers_are_refused_cheaply(case, tmp_path):
    content, message = HOSTILE[case]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match=message):
            open_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (gguf_bytes([tensor_row("t", [32], 0, kind=999)], data=bytes(64)), "tensor type 999"),
    ],
)
def test_what_is_not_built_is_named(content, message, tmp_path):
    path = tmp_path / "other.gguf"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=message):
        read_gguf_header(path)
