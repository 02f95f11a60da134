"""What users write on the command line, parsed: amounts of memory and shares of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {"": 1, "b": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", 1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


@dataclass(frozen=True, slots=True)
class MemoryAmount:
    """Either a number of bytes or a share of what is free when the model is loaded."""

    num_bytes: int | None = None
    share: float | None = None  # 0 < share <= 1

    def of(self, available: int) -> int:
        """Bytes, given the bytes that are available."""
        return int(self.share * available) if self.share is not None else self.num_bytes or 0


def parse_memory(text: str) -> MemoryAmount:
    """Parse "2GiB", "800 MB", "1.5g", "1073741824" or "40%".

    KB, MB and GB are powers of 1000; KiB, MiB, GiB and the bare letters are powers of 1024.

    Raises:
        ValueError: not a positive amount, or more than 100 %.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(%|[a-z]*)", text.strip().lower())
    if match is None or (match[2] != "%" and match[2] not in _UNITS):
        raise ValueError(f"expected an amount such as 2GiB, 800MB or 40%, got {text!r}")
    number = float(match[1])
    if match[2] == "%":
        if not 0 < number <= 100:
            raise ValueError(f"expected a share above 0% and up to 100%, got {text!r}")
        return MemoryAmount(share=number / 100)
    num_bytes = int(number * _UNITS[match[2]])
    if num_bytes <= 0:
        raise ValueError(f"expected a positive amount of memory, got {text!r}")
    return MemoryAmount(num_bytes=num_bytes)


def format_bytes(num_bytes: int) -> str:
    """Write an amount of memory for people: 512 B, 1.5 KiB, 134.5 MiB."""
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
