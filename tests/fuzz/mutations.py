"""Random damage to a file, for machines without a coverage-guided fuzzer and to steer one."""

from __future__ import annotations

import random
import re

INTERESTING = (0, 1, 2, 3, 7, 8, 31, 32, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1,
               2**48, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip


def mutate(content: bytes, generator: random.Random) -> bytes:
    """`content` with one to four damages; of safetensors files the header keeps its right length mostly."""
    data = bytearray(content)
    as_text = generator.random() < 0.8 and data[8:9] == b"{"
    if as_text:
        end = 8 + int.from_bytes(data[:8], "little")
        data, rest = data[8:end], data[end:]
    for _ in range(generator.choice((1, 1, 2, 4))):
        if data:
            generator.choice((_flip, _insert_number, _cut, _repeat, _replace_digits))(data, generator)
    if as_text:
        data = bytearray(len(data).to_bytes(8, "little")) + data + rest
    return bytes(data)


def _place(data: bytearray, generator: random.Random) -> int:
    """Anywhere, but the header of a file twice as often as the rest."""
    return generator.randrange(len(data) if generator.random() < 0.3 else min(len(data), 2048))


def _flip(data: bytearray, generator: random.Random) -> None:
    data[_place(data, generator)] ^= 1 << generator.randrange(8)


def _insert_number(data: bytearray, generator: random.Random) -> None:
    width = generator.choice((1, 4, 8))
    number = generator.choice(INTERESTING) % (1 << 8 * width)
    at = _place(data, generator)
    data[at : at + width] = number.to_bytes(width, "little")


def _cut(data: bytearray, generator: random.Random) -> None:
    at = _place(data, generator)
    del data[at : at + generator.choice((1, 4, 8, 100, len(data)))]


def _repeat(data: bytearray, generator: random.Random) -> None:
    begin, at = _place(data, generator), _place(data, generator)
    data[at:at] = data[begin : begin + generator.choice((1, 8, 50, 500))]


def _replace_digits(data: bytearray, generator: random.Random) -> None:
    numbers = list(re.finditer(rb"\d+", bytes(data[:4096])))
    if numbers:
        number = generator.choice(numbers)
        text = generator.choice((str(generator.choice(INTERESTING)), "-1", "1e400", "null", '""', "[" * 200))
        data[number.start() : number.end()] = text.encode()
