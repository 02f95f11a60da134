"""Outcomes for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flashlet.serving.selftest.run import SECTIONS, Outcome

_STYLES = {"pass": "green", "fail": "bold red", "not applicable": "dim"}
_WORDS = {"pass": "pass", "fail": "FAIL", "not applicable": "n/a"}


def print_outcomes(outcomes: Sequence[Outcome], console: Console) -> None:
    """Print a table per section: what happened, the rule, and why it failed; then the counts."""
    for section, title in SECTIONS.items():
        table = Table(box=None, show_header=False, pad_edge=False, title=title, title_justify="left")
        table.add_column(width=4)
        table.add_column()
        for outcome in outcomes:
            if outcome.section == section:
                style = _STYLES[outcome.status]
                text = Text(outcome.rule)
                if outcome.reason:
                    text.append(f"\n  {outcome.reason}", style)
                table.add_row(Text(_WORDS[outcome.status], style), text)
        console.print(table)
        console.print()
    console.print(summary(outcomes))


def summary(outcomes: Sequence[Outcome]) -> str:
    """The counts, in one line."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(
        (f"{counts['pass']} passed", f"{counts['fail']} failed", f"{counts['not applicable']} not applicable")
    )
