"""The safetensors reader against the safetensors package, and against damaged files."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from flashlet.model.errors import FlashletError, ModelFormatError, UnsupportedModelError
from flashlet.model.safetensors import PADDING_PREFIX, SafetensorsFile, encode_header


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float_types_widen_exactly(dtype, tmp_path):
    tensor = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_torch_file(
        {"odd": torch.ones(3, dtype=dtype), "t": tensor, "none": torch.ones(0, 4, dtype=dtype)},
        tmp_path / "f",
    )
    file = SafetensorsFile(tmp_path / "f")
    loaded = file.float32("t")
    assert loaded.dtype == np.float32 and loaded.flags.writeable
    np.testing.assert_array_equal(loaded, tensor.float().numpy())
    assert file.float32("none").shape == (0, 4)


def test_stored_arrays_are_read_only_views(tmp_path):
    save_file({"bytes": np.arange(6, dtype=np.uint8)}, tmp_path / "f", {"key": "value"})
    file = SafetensorsFile(tmp_path / "f")
    assert file.metadata == {"key": "value"}
    array = file.array("bytes")
    np.testing.assert_array_equal(array, np.arange(6))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_arrays_outlive_their_pages_and_the_file_object(tmp_path):
    values = np.arange(50_000, dtype=np.float32)
    save_file({"t": values}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    array = file.array("t")
    file.drop_pages()
    np.testing.assert_array_equal(array, values)
    file.close()
    file.close()
    file.drop_pages()
    np.testing.assert_array_equal(array, values)


def test_other_types_are_named(tmp_path):
    save_file({"t": np.ones(3, np.int64)}, tmp_path / "f")
    with pytest.raises(UnsupportedModelError, match="I64"):
        SafetensorsFile(tmp_path / "f").float32("t")


def test_encoded_headers_align_every_tensor_and_suit_the_package(tmp_path):
    arrays = {
        "a": np.arange(5, dtype=np.float32),
        "b": np.arange(64, dtype=np.uint8),
        "c": np.ones(3, np.float32),
    }
    layout = {"a": ("F32", (5,)), "b": ("U8", (64,)), "c": ("F32", (3,))}
    header, table = encode_header(layout, {"k": "v"}, alignment=64)
    assert len(header) % 64 == 0 and all(
        info.data_offsets[0] % 64 == 0 for name, info in table.items() if name in arrays
    )
    body = b"".join(array.tobytes().ljust(64, b"\0") for array in arrays.values())
    (tmp_path / "f").write_bytes(header + body)
    loaded = load_file(tmp_path / "f")
    assert {name for name in loaded if not name.startswith(PADDING_PREFIX)} == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
        np.testing.assert_array_equal(SafetensorsFile(tmp_path / "f").array(name), array)


def file_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DAMAGED = {
    "empty": (b"", "found 0"),
    "header beyond the end": (struct.pack("<Q", 100) + b"{}", "of 2 to 2 bytes, found 100"),
    "header of 2^63": (struct.pack("<Q", 2**63) + b"{}", "found 9223372036854775808"),
    "not JSON": (file_bytes(b"{]"), "broken"),
    "deep JSON": (file_bytes(b"[" * 100_000), "broken"),
    "deep JSON in an entry": (file_bytes(b'{"a":' * 100_000), "broken"),
    "not UTF-8": (file_bytes(b'{"\xff": {}}'), "broken"),
    "a list": (file_bytes([]), "Expected `object`, got `array`"),
    "no dtype": (file_bytes({"a": {"shape": [1], "data_offsets": [0, 1]}}, b"1"), "dtype"),
    "unknown key": (file_bytes({"a": entry(0, 1, [1]) | {"pickle": True}}, b"1"), "pickle"),
    "fractional size": (file_bytes({"a": entry(0, 1, [1.5])}, b"1"), "got `float`"),
    "negative size": (file_bytes({"a": entry(0, 1, [-1, -1])}, b"1"), "sizes from 0"),
    "many sizes": (file_bytes({"a": entry(0, 1, [2**48] * 1000)}, b"1"), "at most 8 sizes"),
    "huge size": (file_bytes({"a": entry(0, 1, [10**30])}, b"1"), "a: |Integer|sizes"),
    "other byte count": (file_bytes({"a": entry(0, 1, [2])}, b"1"), "expected 2 bytes"),
    "overlap": (
        file_bytes({"a": entry(0, 2, [2]), "b": entry(1, 3, [2])}, b"123"),
        "from byte 2 on, found 1 to 3",
    ),
    "hole": (
        file_bytes({"a": entry(0, 1, [1]), "b": entry(2, 3, [1])}, b"123"),
        "from byte 1 on, found 2 to 3",
    ),
    "backwards": (file_bytes({"a": entry(0, -1, [1])}, b"1"), "found 0 to -1"),
    "data too short": (
        file_bytes({"a": entry(0, 4, [4])}, b"123"),
        "expected 4 bytes of tensor data, found 3",
    ),
    "data too long": (
        file_bytes({"a": entry(0, 4, [4])}, b"12345"),
        "expected 4 bytes of tensor data, found 5",
    ),
    "metadata of numbers": (file_bytes({"__metadata__": {"a": 1}}), "Expected `str`, got `int`"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(case, tmp_path):
    content, message = DAMAGED[case]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ModelFormatError, match=message):
        SafetensorsFile(tmp_path / "f")


def test_truncation_and_flipped_bytes_raise_typed_errors(tmp_path):
    path = tmp_path / "f"
    save_file({"a": np.ones((3, 5), np.float32), "b": np.ones(7, np.float16)}, path, {"format": "pt"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelFormatError):
            SafetensorsFile(path)
    generator = random.Random(3)
    for _ in range(300):
        content = bytearray(whole)
        content[generator.randrange(len(whole) - 74)] = generator.randrange(256)
        path.write_bytes(content)
        _open_leniently(path)


def _open_leniently(path: Path) -> None:
    try:
        file = SafetensorsFile(path)
        for name in file.tensors:
            file.float32(name)
    except FlashletError as error:
        assert str(error)
