"""A picture of a comparison: throughput by load, and how long tokens are waited for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comparison import Comparison

_WIDTH = 0.8  # of a group of bars


def draw_chart(comparison: Comparison, title: str, path: Path) -> None:
    """Write a PNG with a panel for throughput above one for gaps and stalls."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (speeds, waits) = plt.subplots(2, 1, figsize=(11, 9))
    _bars(speeds, comparison, ("tokens/s",), "tokens per second, all clients together")
    _bars(waits, comparison, ("gap p99, ms", "longest stall, ms"), "longest waits between tokens, ms")
    waits.set_yscale("log")
    speeds.legend(frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bars(axes: Any, comparison: Comparison, metrics: tuple[str, ...], title: str) -> None:
    """Groups of bars, one group for each scenario that has one of the metrics."""
    groups = [
        (scenario, metric)
        for scenario, rows in comparison.samples.items()
        for metric in metrics
        if metric in rows
    ]
    width = _WIDTH / len(comparison.contenders)
    for number, name in enumerate(comparison.contenders):
        values = [comparison.median(scenario, metric, name) or 0 for scenario, metric in groups]
        offsets = [group + (number + 0.5) * width - _WIDTH / 2 for group in range(len(groups))]
        bars = axes.bar(offsets, values, width, label=name)
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], fontsize=8)
    labels = [
        scenario.replace(", ", "\n").replace(" of ", "\nof ").replace(" during ", "\nduring ")
        + ("" if len(metrics) == 1 else f"\n{metric[:-4]}")
        for scenario, metric in groups
    ]
    axes.set_xticks(range(len(groups)), labels, fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
