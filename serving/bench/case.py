"""One kind of step that is measured, and the clock that measures it."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flashlet.model.executor import Executor
from flashlet.serving.bench.measurement import Measurement
from flashlet.serving.bench.workload import Workload

_STEPS_PER_READ = 8  # steps between two measurements of the read bandwidth


class Meter:
    """Times steps and, where the native core runs them, the memory in between."""

    def __init__(self, executor: Executor) -> None:
        self._native: Any = getattr(executor, "native", None)  # the C++ model; no other executor has one
        self.reset()

    def reset(self) -> None:
        """Begin a sample."""
        self.seconds = 0.0
        self.reads: list[float] = []  # bytes per second
        self._steps = 0
        if self._native:
            self._native.take_profile()

    def step(self, run: Callable[[], None]) -> None:
        """Run one step, and now and then measure the read bandwidth before it."""
        if self._native and self._steps % _STEPS_PER_READ == 0:
            self.reads.append(self._native.measure_read())
        self._steps += 1
        begin = time.perf_counter()
        run()
        self.seconds += time.perf_counter() - begin

    def stages(self) -> dict[str, float]:
        """Seconds by stage since the last reset."""
        return dict(self._native.take_profile()) if self._native else {}


@dataclass(slots=True)
class Case:
    """One row of the report, and what was measured so far."""

    kind: Literal["prefill", "decode"]
    workload: Workload
    batch_size: int
    num_tokens: int  # of each sequence
    num_steps: int
    bytes: int  # of one sample; 0: not counted
    macs: int  # of one sample
    tokens: list[list[int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)  # bytes per second
    stages: list[dict[str, float]] = field(default_factory=list)

    def run(self, meter: Meter) -> list[int]:
        """Run the steps of one sample; the tokens, step by step."""
        if self.kind == "decode":
            return self.workload.decode(self.batch_size, self.num_steps, meter.step)
        made: list[int] = []
        meter.step(lambda: made.extend(self.workload.prefill()))
        return made

    def sample(self, meter: Meter) -> None:
        """Measure once more."""
        meter.reset()
        self.tokens.append(self.run(meter))
        self.stages.append(meter.stages())
        self.seconds.append(meter.seconds)
        if meter.reads:
            self.reads.append(statistics.median(meter.reads))

    def sequence_tokens(self, index: int) -> list[int]:
        """Tokens of one sequence in the first sample."""
        return self.tokens[0][index :: self.batch_size]

    def measurement(self) -> Measurement:
        """Medians over the samples."""
        total = self.batch_size * self.num_tokens
        samples = tuple(total / seconds for seconds in self.seconds)
        counted = self.bytes if self.reads else 0
        rates = [counted / seconds for seconds in self.seconds]
        return Measurement(
            kind=self.kind,
            batch_size=self.batch_size,
            context=self.workload.context if self.kind == "decode" else 0,
            tokens_per_sequence=self.num_tokens,
            samples=samples,
            tokens_per_second=statistics.median(samples),
            step_ms=1e3 * statistics.median(self.seconds) / self.num_steps,
            gmac_per_second=self.macs / statistics.median(self.seconds) / 1e9,
            gb_per_second=statistics.median(rates) / 1e9 if counted else None,
            read_gb_per_second=statistics.median(self.reads) / 1e9 if self.reads else None,
            read_share=statistics.median(map(float.__truediv__, rates, self.reads)) if counted else None,
            stage_ms={
                name: 1e3 * statistics.median(stages[name] for stages in self.stages) / self.num_steps
                for name in self.stages[0]
            },
            output_hash=token_hash(self.tokens[0]),
            repeatable=all(tokens == self.tokens[0] for tokens in self.tokens),
        )


def token_hash(tokens: Sequence[int]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the ids as 32-bit little-endian integers."""
    return hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in tokens)).hexdigest()[:16]
