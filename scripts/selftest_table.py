"""Markdown table of several servers: python scripts/selftest_table.py SETUP NAME=FILE ... >docs/selftest.md.

SETUP says in a sentence what ran; each FILE is the output of `flashlet selftest --json`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from flashlet.serving.selftest.run import SECTIONS, all_rules

MARKS = {"pass": "pass", "fail": "**fail**", "not applicable": "n/a"}
INTRODUCTION = """\
# The wire, rule by rule

What clients rely on, as `flashlet selftest` checks it: over HTTP, with plain requests, on any server
(`flashlet selftest --url URL`; without a URL it starts its own). n/a: the rule cannot be checked there, or
does not apply, and the notes say why. Each rule is a function in `serving/selftest/`, a module per section.

The counts are no score. The rules are what flashlet promises, chosen by what widespread clients break on; one
missing feature breaks several of them, and names of metrics and of the tokenizer's fields are vLLM's, which
other servers never promised.
"""


def main(setup: str, arguments: list[str]) -> None:
    columns = {}
    for argument in arguments:
        name, _, file = argument.partition("=")
        columns[name] = {
            (outcome["section"], outcome["name"]): outcome for outcome in json.loads(Path(file).read_text())
        }
    print(INTRODUCTION, setup, "", sep="\n")
    for name, outcomes in columns.items():
        counts = Counter(outcome["status"] for outcome in outcomes.values())
        print(f"- {name}: " + ", ".join(f"{counts[status]} {status}" for status in MARKS))
    for section, title in SECTIONS.items():
        print(f"\n## {title}\n")
        print("| rule |", " | ".join(columns), "|\n|---|" + "---|" * len(columns))
        notes = []
        for rule in (rule for rule in all_rules() if rule.section == section):
            found = [outcomes[section, rule.name] for outcomes in columns.values()]
            print("|", _cell(rule.text), "|", " | ".join(MARKS[one["status"]] for one in found), "|")
            for name, one in zip(columns, found, strict=True):
                if one["reason"]:
                    notes.append(f"- {rule.name}, {name}: {_cell(one['reason'])}")
        if notes:
            print("\n" + "\n".join(notes))


def _cell(text: str) -> str:
    """Text as Markdown shows it unchanged, without a way out of its table cell."""
    for char in "\\|*_<>":
        text = text.replace(char, "\\" + char)
    return " ".join(text.split())


main(sys.argv[1], sys.argv[2:])
