"""Small files in which the operating system tells facts."""

from __future__ import annotations

from pathlib import Path


def system_text(path: Path) -> str:
    """The text of `path` without white space around it; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
