"""Prometheus metrics. Names follow vLLM's with the prefix `flashlet:`.

Requests are counted here in plain lists, because the token loop of a stream cannot afford more;
prometheus_client comes in when somebody scrapes.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from flashlet.serving.engine.request_stream import RequestStream
    from flashlet.serving.engine.stats import EngineStats

PREFIX = "flashlet:"
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
REQUEST_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
ERROR_RATIOS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 5.0)
GAUGES = {
    "num_requests_running": ("running", "Sequences in the running batch."),
    "num_requests_waiting": ("waiting", "Sequences in the queue."),
    "kv_cache_usage_perc": ("kv_usage", "Share of the KV pool held by running sequences, 0 to 1."),
    "spec_speedup_ratio": (
        "spec_speedup",
        "Speed of the latest steps with speculation, relative to steps without; 1 before any.",
    ),
}
COUNTERS = {
    "prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the prefix cache."),
    "prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the prefix cache."),
    "prompt_tokens": ("prompt_tokens", "Prompt tokens of the sequences that started, cached ones included."),
    "generation_tokens": ("generation_tokens", "Tokens generated."),
    "num_preemptions": ("preemptions", "Sequences sent back to the queue because blocks ran out."),
    "spec_decode_num_drafts": ("drafts", "Times that proposed tokens of a sequence were verified."),
    "spec_decode_num_draft_tokens": ("draft_tokens", "Tokens proposed."),
    "spec_decode_num_accepted_tokens": ("accepted_tokens", "Proposed tokens that were right."),
}

REQUEST_COUNTERS = {
    "joined_requests": "Retries that joined the running answer of their original.",
    "resumed_streams": "Streams that were taken up again after a cut.",
    "answer_cache_hits": "Requests that were answered from the answer cache.",
}


class Histogram:
    """Counts of observations per bucket, and their sum."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.documentation = documentation
        self.bounds = bounds  # upper bounds, included; one more bucket takes the rest
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation, in seconds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus buckets: (upper bound, observations up to it)."""
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Metrics:
    """What one server has seen. Written on the event loop's thread."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(
            "time_to_first_token_seconds", "From arrival to the first token.", REQUEST_SECONDS
        )
        self.inter_token_latency = Histogram(
            "inter_token_latency_seconds", "Between two tokens of one sequence.", TOKEN_SECONDS
        )
        self.request_latency = Histogram(
            "e2e_request_latency_seconds", "From arrival to the last token.", REQUEST_SECONDS
        )
        self.queue_time = Histogram(
            "request_queue_time_seconds", "From arrival to the first step.", REQUEST_SECONDS
        )
        self.ttft_error = Histogram("ttft", "", ERROR_RATIOS)
        self.total_error = Histogram("total", "", ERROR_RATIOS)
        self.finished: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})
        self.batch_lines: Counter[str] = Counter({"completed": 0, "failed": 0})
        self.batch_lines_running = 0
        self.batch_lines_waiting = 0
        self.joined_requests = 0
        self.resumed_streams = 0
        self.answer_cache_hits = 0

    def sequence_ended(self, stream: RequestStream, reason: str) -> None:
        """Count a sequence; `reason` is its finish reason, or abort (the client left), or error."""
        times = stream.metrics
        self.finished[reason] += 1
        self.request_latency.observe(time.perf_counter() - times.arrival)
        if times.first_scheduled is not None:
            self.queue_time.observe(times.first_scheduled - times.arrival)
        self._compare(stream, reason)
        if times.first_token is not None:
            self.time_to_first_token.observe(times.first_token - times.arrival)

    def _compare(self, stream: RequestStream, reason: str) -> None:
        """Count how far the sequence was from what had been expected of it."""
        times, estimate = stream.metrics, stream.estimate
        if estimate is None or estimate.ttft_ms is None or estimate.total_ms is None:
            return
        if times.first_token is not None:
            actual = 1e3 * (times.first_token - times.arrival)
            self.ttft_error.observe(abs(estimate.ttft_ms - actual) / actual)
        if times.last_token is not None and reason in {"stop", "length"}:
            actual = 1e3 * (times.last_token - times.arrival)
            self.total_error.observe(abs(estimate.total_ms - actual) / actual)

    def families(self, stats: EngineStats | None) -> Iterator[Metric]:
        """All metrics; those of the engine only once there is one."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for histogram in (
            self.time_to_first_token, self.inter_token_latency, self.request_latency, self.queue_time
        ):  # fmt: skip
            yield HistogramMetricFamily(
                PREFIX + histogram.name, histogram.documentation, histogram.cumulative(), histogram.sum
            )
        errors = HistogramMetricFamily(
            PREFIX + "estimate_error_ratio",
            "Distance of expected from actual times, relative to the latter: to the first token, in total.",
            labels=["of"],
        )
        for histogram in (self.ttft_error, self.total_error):
            errors.add_metric([histogram.name], histogram.cumulative(), histogram.sum)
        yield errors
        finished = CounterMetricFamily(
            PREFIX + "request_success", "Sequences that ended, by reason.", labels=["finished_reason"]
        )
        for reason, count in self.finished.items():
            finished.add_metric([reason], count)
        yield finished
        yield from self._batch_families()
        for name, documentation in REQUEST_COUNTERS.items():
            yield CounterMetricFamily(PREFIX + name, documentation, getattr(self, name))
        if stats is not None:
            for name, (attribute, documentation) in GAUGES.items():
                yield GaugeMetricFamily(PREFIX + name, documentation, getattr(stats, attribute))
            for name, (attribute, documentation) in COUNTERS.items():
                yield CounterMetricFamily(PREFIX + name, documentation, getattr(stats, attribute))
            yield _accepted_per_position(stats)

    def _batch_families(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        answered = CounterMetricFamily(
            PREFIX + "batch_lines", "Lines of batches that were answered.", labels=["state"]
        )
        for state, count in self.batch_lines.items():
            answered.add_metric([state], count)
        yield answered
        open_lines = GaugeMetricFamily(
            PREFIX + "num_batch_lines", "Lines of batches without an answer.", labels=["state"]
        )
        open_lines.add_metric(["running"], self.batch_lines_running)
        open_lines.add_metric(["waiting"], self.batch_lines_waiting)
        yield open_lines

    def render(self, stats: EngineStats | None) -> bytes:
        """The Prometheus text format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector

        metrics = self

        class Snapshot(Collector):
            def collect(self) -> Iterator[Metric]:
                return metrics.families(stats)

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Snapshot())
        return generate_latest(registry)


def _accepted_per_position(stats: EngineStats) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(
        PREFIX + "spec_decode_num_accepted_tokens_per_pos",
        "Proposed tokens that were right, by position behind the last known token.",
        labels=["position"],
    )
    for position, count in enumerate(stats.accepted_per_position):
        family.add_metric([str(position)], count)
    return family
