"""What clients do to one server, and what they see. Every scenario returns its metrics by name."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prompts import PromptMaker
from stream_client import Answer, Endpoint, Recording, complete

ANSWER_TOKENS = 96
SHORT, LONG = 30, 1500  # tokens of a prompt
_TAIL_TOKENS = 10  # new tokens after a cached prefix
_WARM_READS = 8  # reads of every stream before the long prompts arrive
_STREAM_TOKENS = 1900  # more than a stream decodes while the long prompts are prefilled, drafts included

Metrics = dict[str, float]


class Scenario(Protocol):
    """Something that can be done to one server after another."""

    @property
    def name(self) -> str:
        """Title of its rows in the report."""

    async def run(self, endpoint: Endpoint, prompts: PromptMaker) -> Metrics:
        """Do it once; times in milliseconds."""


@dataclass(frozen=True, slots=True)
class Load:
    """`clients` at once, each asking for one answer after the other, with a new prompt each time."""

    clients: int
    prompt_tokens: int
    answers_per_client: int
    answer_tokens: int = ANSWER_TOKENS

    @property
    def name(self) -> str:
        """Number of clients and length of the prompts."""
        return f"{self.clients} client{'s' * (self.clients > 1)}, {self.prompt_tokens:,}-token prompts"

    async def run(self, endpoint: Endpoint, prompts: PromptMaker) -> Metrics:
        """Throughput over the whole time, time to first token, and gaps between tokens."""
        texts = [
            [prompts.prompt(self.prompt_tokens) for _ in range(self.answers_per_client)]
            for _ in range(self.clients)
        ]

        async def client(own: Sequence[str]) -> list[Recording]:
            return [await complete(endpoint, text, self.answer_tokens) for text in own]

        recordings = await asyncio.gather(*map(client, texts))
        answers = [recording.answer() for own in recordings for recording in own]
        duration = max(answer.finished for answer in answers) - min(answer.sent for answer in answers)
        gaps = [1e3 * gap for answer in answers for gap in answer.gaps]
        return {
            "tokens/s": sum(answer.completion_tokens for answer in answers) / duration,
            **_first_tokens(answers),
            "gap p50, ms": percentile(gaps, 50),
            "gap p99, ms": percentile(gaps, 99),
        }


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One client alone: how long until the first token of a short prompt, and after a cached prefix."""

    times: int = 5

    @property
    def name(self) -> str:
        """Title."""
        return "one client alone"

    async def run(self, endpoint: Endpoint, prompts: PromptMaker) -> Metrics:
        """Medians of several requests, one after the other."""
        short = [await complete(endpoint, prompts.prompt(SHORT), 2) for _ in range(self.times)]
        prefix = prompts.prompt(LONG)
        await complete(endpoint, prefix, 2)
        tails = [f"{prefix} {prompts.prompt(_TAIL_TOKENS)}" for _ in range(self.times)]
        cached = [await complete(endpoint, text, 2) for text in tails]
        return {
            f"TTFT, {SHORT} tokens, ms": 1e3 * statistics.median(item.answer().ttft for item in short),
            f"TTFT, {LONG:,} cached tokens, ms": 1e3
            * statistics.median(item.answer().ttft for item in cached),
        }


@dataclass(frozen=True, slots=True)
class Interruption:
    """Long prompts arrive while others are being answered: does anybody's answer stall?"""

    streams: int = 12
    long_prompts: int = 4

    @property
    def name(self) -> str:
        """Title."""
        return f"{self.long_prompts} prompts of {LONG:,} tokens during {self.streams} streams"

    async def run(self, endpoint: Endpoint, prompts: PromptMaker) -> Metrics:
        """Longest gap of any stream from the arrival of the long prompts to the first token of the last."""
        texts = [prompts.prompt(SHORT) for _ in range(self.streams)]
        long_texts = [prompts.prompt(LONG) for _ in range(self.long_prompts)]
        streams = [await Recording.start(endpoint, text, _STREAM_TOKENS) for text in texts]
        while any(len(stream.reads) < _WARM_READS and not stream.done.done() for stream in streams):
            await asyncio.sleep(0.02)
        begin = time.perf_counter()
        long_recordings = await asyncio.gather(*(complete(endpoint, text, 2) for text in long_texts))
        for stream in streams:
            stream.abort()
        long_answers = [recording.answer() for recording in long_recordings]
        end = max(answer.text_times[0] for answer in long_answers)
        answers = [stream.answer() for stream in streams]
        if any(answer.completion_tokens for answer in answers):
            raise RuntimeError("a stream ended before the long prompts were answered: nothing was measured")
        return {
            "longest stall, ms": 1e3 * max(longest_stall(answer, begin, end) for answer in answers),
            **_first_tokens(long_answers),
        }


def longest_stall(answer: Answer, begin: float, end: float) -> float:
    """Longest time without text that overlaps the interval, which counts as text at its end."""
    times = [moment for moment in answer.text_times if moment <= end]
    pairs = zip(times, [*times[1:], end], strict=True)
    return max(after - before for before, after in pairs if after >= begin)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def _first_tokens(answers: Sequence[Answer]) -> Metrics:
    times = [1e3 * answer.ttft for answer in answers]
    return {"TTFT p50, ms": percentile(times, 50), "TTFT p99, ms": percentile(times, 99)}
