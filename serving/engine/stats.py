"""Numbers about the engine, for metrics and logs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Totals since the start. Written by the scheduler."""

    steps: int = 0
    preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # prompt tokens found there
    prompt_tokens: int = 0
    generation_tokens: int = 0


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
