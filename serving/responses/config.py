"""What the user may choose about stored responses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True, slots=True)
class ResponseConfig:
    """Where responses are kept, and how many. Beyond a limit the oldest go."""

    folder: Path | None = None  # None: in memory, until the server ends
    seconds: int = 30 * DAY  # responses are deleted so long after their creation
    max_responses: int = 10_000
    max_bytes: int = 1 << 30
