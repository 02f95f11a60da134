"""What the user may choose about files and batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """Where files and batches are kept, and their limits."""

    folder: Path  # belongs to one server at a time; made when it is first needed
    max_sequences: int = 16  # of batches, running at once; at most half of the engine's
    max_file_bytes: int = 200 << 20
    max_lines: int = 50_000  # of one batch
    max_line_bytes: int = 8 << 20
    file_seconds: int = 30 * DAY  # files are deleted so long after their creation, unless they say otherwise

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.folder / "flashlet.sqlite3"
