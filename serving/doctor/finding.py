"""Something about the machine or the model that its owner should know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]  # error: it prevents serving


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem and what to do about it, in one line each."""

    severity: Severity
    problem: str
    remedy: str
