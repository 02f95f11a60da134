from __future__ import annotations

import pytest

from flashlet.serving.config import MemoryAmount, format_bytes, parse_memory


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1073741824", 1 << 30),
        ("2GiB", 2 << 30),
        ("2g", 2 << 30),
        ("2 GB", 2 * 10**9),
        ("1.5MiB", 3 << 19),
        ("512 kb", 512_000),
        ("7B", 7),
        ("1TiB", 1 << 40),
    ],
)
def test_bytes(text: str, num_bytes: int) -> None:
    assert parse_memory(text) == MemoryAmount(num_bytes=num_bytes)
    assert parse_memory(text).of(123) == num_bytes


def test_share_of_what_is_available() -> None:
    assert parse_memory("40%").of(1000) == 400
    assert parse_memory(" 100 % ").of(1000) == 1000


@pytest.mark.parametrize(
    "text", ["", "lots", "2 pages", "-1GiB", "0", "0%", "101%", "1e9", "nan", "2GiB 1", "0.1b"]
)
def test_nonsense_is_refused_with_what_was_given(text: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        parse_memory(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (141033472, "134.5 MiB"), (1 << 41, "2.0 TiB")],
)
def test_format(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text
