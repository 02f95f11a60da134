"""An examination for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashlet.serving.config import format_bytes
from flashlet.serving.doctor.examination import Examination
from flashlet.serving.doctor.model_fit import ModelFit
from flashlet.serving.machine import Machine

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def print_examination(examination: Examination, console: Console) -> None:
    """Print facts, then findings with their remedies, then the verdict."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _facts(examination):
        table.add_row(name, Text(value))
    console.print(table)
    for finding in examination.findings:
        console.print()
        console.print(Text.assemble((finding.severity, _STYLES[finding.severity]), ": ", finding.problem))
        console.print(Text(f"  {finding.remedy}"))
    verdict = "Ready to serve." if examination.can_serve else "Serving would fail."
    console.print(f"\n{verdict}")


def _facts(examination: Examination) -> Iterator[tuple[str, str]]:
    machine, bandwidth, fit = examination.machine, examination.bandwidth, examination.model
    yield "CPU", machine.cpu
    if examination.instruction_sets:
        best, *others = examination.instruction_sets
        yield "instructions", f"{best}" + (f" (also possible: {', '.join(others)})" if others else "")
    yield "cores", _cores(machine)
    memory = f"{format_bytes(machine.available_memory)} free of {format_bytes(machine.total_memory)}"
    yield "memory", memory + (f", {format_bytes(machine.swap_used)} in swap" if machine.swap_used else "")
    if bandwidth:
        what = "the model's weights" if bandwidth.source == "weights" else "a buffer"
        yield (
            "bandwidth",
            f"{bandwidth.gb_per_second:.1f} GB/s reading {what} with {_threads(bandwidth.threads)} "
            f"(varies by {bandwidth.spread:.0%})",
        )
    if fit:
        yield from _model(fit)


def _cores(machine: Machine) -> str:
    allowed = f"{machine.allowed_cpus} of {machine.logical_cpus} CPUs"
    quota = "" if machine.cpu_quota is None else f", limit of the container or service {machine.cpu_quota:g}"
    return f"{allowed}{quota}; {_threads(machine.default_threads)} by default"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _model(fit: ModelFit) -> Iterator[tuple[str, str]]:
    yield "model", fit.name
    yield (
        "fit",
        f"{format_bytes(fit.weight_bytes)} of weights, {format_bytes(fit.kv_bytes)} of {fit.kv_dtype} KV "
        f"for one context of {fit.context_length:,} tokens",
    )
    if fit.expected_tokens_per_second:
        yield (
            "expected",
            f"up to {fit.expected_tokens_per_second:.0f} tokens/s for one sequence at "
            f"{fit.expected_context:,} tokens of context (bandwidth / bytes per token)",
        )
