"""What `flashlet bench` reports; encodes to JSON as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kind of step, measured several times. Rates are medians over `samples`."""

    kind: Literal["prefill", "decode"]
    batch_size: int  # sequences
    context: int  # tokens before the measured ones
    tokens_per_sequence: int  # measured tokens of each sequence in each sample
    samples: tuple[float, ...]  # tokens per second, all sequences together
    tokens_per_second: float
    step_ms: float  # duration of one step
    gmac_per_second: float
    gb_per_second: (
        float | None
    )  # read by decode steps, see step_cost.py; None: prefill, or not the native core
    read_gb_per_second: float | None  # reading the weights alone, in between these steps
    read_share: float | None  # median over the samples of the ratio of both
    stage_ms: dict[str, float]  # time per step by stage on the first thread; empty without the native core
    output_hash: str  # of the greedy tokens
    repeatable: bool  # every sample gave the same tokens


@dataclass(frozen=True, slots=True)
class BenchReport:
    """All measurements of one run."""

    model: str
    executor: str
    cpu: str
    kv_dtype: str
    weight_bytes: int | None  # read in each step; None: not the native core
    kv_bytes_per_token: int  # read in each decode step for each token of context
    read_gb_per_second: float | None  # median over the run
    context_cost: float | None  # speed of one sequence at the long context over that at the short one
    output_hash: str  # of the first sequence's greedy tokens
    batch_invariant: bool  # every batch size gave the same tokens to the sequences that it shares with others
    measurements: tuple[Measurement, ...]
