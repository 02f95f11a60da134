"""Numbers about the engine, for metrics and logs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Totals since the start. Written by the scheduler."""

    steps: int = 0
    preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # prompt tokens found there
    prompt_tokens: int = 0
    generation_tokens: int = 0
    drafts: int = 0  # times that proposed tokens were verified
    draft_tokens: int = 0  # tokens proposed
    accepted_tokens: int = 0  # of them, those that were right
    accepted_per_position: list[int] = field(default_factory=list)  # drafts right up to here, and longer

    def count_draft(self, num_proposed: int, num_accepted: int) -> None:
        """One sequence's proposals were verified."""
        self.drafts += 1
        self.draft_tokens += num_proposed
        self.accepted_tokens += num_accepted
        per_position = self.accepted_per_position
        per_position.extend([0] * (num_proposed - len(per_position)))
        for position in range(num_accepted):
            per_position[position] += 1


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine."""

    running: int
    waiting: int
    kv_usage: float  # share of the KV pool held by running sequences, 0 to 1
    steps: int
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    prompt_tokens: int
    generation_tokens: int
    drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_per_position: list[int]
    spec_speedup: float  # measured; see live_comparison.py
