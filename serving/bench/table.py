"""A benchmark's report for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from flashlet.serving.bench.measurement import BenchReport, Measurement
from flashlet.serving.config import format_bytes

_LEAST_SHARE = 0.02  # of a step's time; stages below are left out of the table


def print_report(report: BenchReport, console: Console) -> None:
    """Print speeds, stages and the summary."""
    console.print(f"{report.model} on {report.cpu}: {report.executor}\n", highlight=False)
    console.print(_speeds(report.measurements))
    if any(item.stage_ms for item in report.measurements):
        console.print("\nTime by stage, in ms per step (first thread)")
        console.print(_stages(report.measurements))
    console.print("", *_summary(report), sep="\n", highlight=False)


def _speeds(measurements: tuple[Measurement, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in (
        "",
        "batch",
        "context",
        "tokens/s",
        "ms/step",
        "GMAC/s",
        "GB/s",
        "of read",
        "spread",
        "hash",
    ):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for item in measurements:
        spread = (max(item.samples) - min(item.samples)) / item.tokens_per_second
        table.add_row(
            item.kind,
            str(item.batch_size),
            f"{item.context:,}",
            f"{item.tokens_per_second:,.1f}",
            f"{item.step_ms:,.2f}",
            f"{item.gmac_per_second:,.1f}",
            "" if item.gb_per_second is None else f"{item.gb_per_second:.2f}",
            "" if item.read_share is None else f"{item.read_share:.0%}",
            f"{spread:.0%}",
            item.output_hash + ("" if item.repeatable else " (differs)"),
        )
    return table


def _stages(measurements: tuple[Measurement, ...]) -> Table:
    names = [
        name
        for name in measurements[0].stage_ms
        if any(item.stage_ms[name] > _LEAST_SHARE * item.step_ms for item in measurements)
    ]
    table = Table(box=None, pad_edge=False)
    for heading in ("", "batch", "context", *names):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for item in measurements:
        times = (f"{item.stage_ms[name]:.2f}" for name in names)
        table.add_row(item.kind, str(item.batch_size), f"{item.context:,}", *times)
    return table


def _summary(report: BenchReport) -> list[str]:
    lines = []
    if report.read_gb_per_second is not None and report.weight_bytes is not None:
        lines.append(
            f"Reading the weights alone: {report.read_gb_per_second:.2f} GB/s. A decode step reads "
            f"{format_bytes(report.weight_bytes)} of weights and "
            f"{format_bytes(report.kv_bytes_per_token)} of {report.kv_dtype} KV for each token of context."
        )
    if report.context_cost is not None:
        long = report.measurements[-1].context
        short = report.measurements[1].context
        lines.append(
            f"One sequence at {long:,} tokens of context runs at {report.context_cost:.0%} "
            f"of the speed at {short:,}."
        )
    same = (
        "whatever the batch size" if report.batch_invariant else "for one batch size; THEY DIFFER FOR OTHERS"
    )
    lines.append(f"Greedy tokens of the first sequence: {report.output_hash}, the same {same}.")
    return lines
