"""Measurements of several contenders in turns: medians, ratios, and the tables that show them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_HIGHER_IS_BETTER = "tokens/s"


@dataclass
class Comparison:
    """Samples by scenario, metric and contender; the first contender is compared with the others."""

    contenders: tuple[str, ...]
    samples: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)

    def add(self, scenario: str, contender: str, metrics: Mapping[str, float]) -> None:
        """Keep what one run of a scenario measured."""
        rows = self.samples.setdefault(scenario, {})
        for metric, value in metrics.items():
            rows.setdefault(metric, {}).setdefault(contender, []).append(value)

    def median(self, scenario: str, metric: str, contender: str) -> float | None:
        """Median over the rounds; None if it was not measured."""
        values = self.samples[scenario][metric].get(contender)
        return statistics.median(values) if values else None

    def advantage(self, scenario: str, metric: str, other: str) -> float | None:
        """How many times better the first contender is than `other`: median of the ratios round by round.

        None without pairs, or where something took no time, as gaps do between tokens that come together.
        """
        row = self.samples[scenario][metric]
        pairs = list(zip(row.get(self.contenders[0], ()), row.get(other, ()), strict=False))
        if not pairs or not all(ours > 0 and theirs > 0 for ours, theirs in pairs):
            return None
        if metric.startswith(_HIGHER_IS_BETTER):
            return statistics.median(ours / theirs for ours, theirs in pairs)
        return statistics.median(theirs / ours for ours, theirs in pairs)

    def markdown(self) -> str:
        """One row per scenario and metric: medians, and how many times better the first contender is."""
        first, *others = self.contenders
        heads = ["", "", *self.contenders, *(f"{first} / {other}" for other in others)]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * 2 + "---:|" * (len(heads) - 2)]
        for scenario, metrics in self.samples.items():
            for number, metric in enumerate(metrics):
                cells = [scenario if number == 0 else "", metric]
                cells += [_number(self.median(scenario, metric, name)) for name in self.contenders]
                cells += [_times(self.advantage(scenario, metric, other)) for other in others]
                lines.append("| " + " | ".join(cells) + " |")
        return (
            "\n".join(lines)
            + "\n\nThe last columns say how many times better: more tokens/s, or less time or memory.\n"
        )

    def to_json(self) -> dict[str, Any]:
        """Samples, medians and advantages."""
        return {
            "contenders": list(self.contenders),
            "results": [
                {
                    "scenario": scenario,
                    "metric": metric,
                    "samples": row,
                    "median": {name: self.median(scenario, metric, name) for name in row},
                    "advantage": {
                        other: self.advantage(scenario, metric, other) for other in self.contenders[1:]
                    },
                }
                for scenario, metrics in self.samples.items()
                for metric, row in metrics.items()
            ],
        }


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"
