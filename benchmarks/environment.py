"""Where and when a benchmark ran."""

from __future__ import annotations

import datetime
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from flashlet.serving.config import format_bytes
from flashlet.serving.machine import read_machine


def describe_environment() -> dict[str, str]:
    """Date, machine, commit and command; folders are left out of the command."""
    machine = read_machine()
    arguments = [Path(argument).name if "/" in argument else argument for argument in sys.argv[1:]]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": (
            f"{machine.cpu}, {machine.default_threads} cores, {format_bytes(machine.total_memory)} of memory"
        ),
        "flashlet": f"{version('flashlet')} ({_commit()})",
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
    }


def environment_lines(environment: dict[str, str]) -> str:
    """The same as a Markdown list."""
    return "\n".join(f"- {name}: {value}" for name, value in environment.items())


def _commit() -> str:
    """Of the working tree; it ends in -dirty if files differ from the commit."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        result = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown commit"
    return result.stdout.strip()
