"""A conversation in the terminal."""

from __future__ import annotations

import contextlib
import importlib
import sys

from flashlet.model.errors import FlashletError
from flashlet.serving.cli.answers import AnswerSource, Message
from flashlet.serving.cli.errors import print_error

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"
# A model may write escape sequences; the terminal must not run them.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


class Terminal:
    """Reads lines, streams answers and keeps the history."""

    def __init__(self, source: AnswerSource, system: str | None) -> None:
        """`system` is the system message, if any."""
        self._source = source
        self._start: list[Message] = [{"role": "system", "content": system}] if system else []
        self._history = list(self._start)

    def run(self) -> None:
        """Converse until /exit or the end of the input."""
        prompt = ""
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):
                importlib.import_module("readline")  # gives input() editing and a history of lines
            print(HELP)
            prompt = "> "
        while True:
            try:
                line = input(prompt).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print(f"\n{HELP}")
                continue
            if line == "/exit":
                return
            if line:
                self._handle(line)

    def _handle(self, line: str) -> None:
        if line == "/reset":
            self._history = list(self._start)
            print("The conversation is forgotten.")
        elif line.startswith("/"):
            print(HELP)
        else:
            self._answer(line)

    def _answer(self, line: str) -> None:
        """Stream one answer; what was said before Ctrl-C stays in the history, a failed turn does not."""
        messages: list[Message] = [*self._history, {"role": "user", "content": line}]
        pieces: list[str] = []
        try:
            for piece in self._source.stream(messages):
                pieces.append(piece)
                print(piece.translate(_CONTROL), end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        except FlashletError as error:
            print_error(str(error))
            return
        print()
        self._history = [*messages, {"role": "assistant", "content": "".join(pieces)}]
