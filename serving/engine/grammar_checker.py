"""Tries grammars in a process of its own, because a hostile one may take for ever, or all memory, or crash.

What a worker compiled within its limits is then compiled here, where it takes as long and no longer.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
import weakref
from typing import cast

from flashlet.serving.engine.grammar import Grammar
from flashlet.serving.errors import GrammarError

DEADLINE = 60.0  # seconds; only for a machine so busy that the worker's limit of CPU time does not help


class GrammarChecker:
    """One worker process, started when it is first needed and again after it had to end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[bytes]] = []  # one or none
        weakref.finalize(self, _end, self._processes)

    def check(self, grammar: Grammar) -> None:
        """Raise GrammarError if `grammar` cannot be compiled; a schema's error says where."""
        with self._lock:
            self._start()
            error = self._ask([grammar.source, grammar.schema])
        if error is None:
            raise GrammarError("compiling it takes too much time or memory")
        if error:
            raise GrammarError(error)

    def _start(self) -> None:
        if self._processes and self._processes[0].poll() is not None:
            _end(self._processes)
        if not self._processes:
            command = [sys.executable, "-m", "flashlet.serving.engine.grammar_worker"]
            pipe = subprocess.PIPE
            self._processes.append(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
            )

    def _ask(self, question: list[str | None]) -> str | None:
        """The worker's answer; None, and no worker any more, if there is none in time."""
        stdin, stdout = self._processes[0].stdin, self._processes[0].stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            if select.select([stdout], [], [], DEADLINE)[0] and (line := stdout.readline()):
                return cast("str", json.loads(line))
        except OSError:
            pass
        _end(self._processes)
        return None


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
        process.communicate()
    processes.clear()
