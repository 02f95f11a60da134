"""From the text of an answer to its content and tool calls, as the text comes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flashlet.serving.api.tools.convention import Convention

_NAME = "([A-Za-z0-9_-]+)"
_STRUCTURE = re.compile(r'[{}\[\]"]')
_IN_STRING = re.compile(r'[\\"]')


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """Text outside of any call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """The start of call `index`, or more of its arguments."""

    index: int
    name: str | None = None  # given at the start, and only there
    arguments: str = ""


Delta = ContentDelta | CallDelta


class CallParser:
    """Splits an answer that keeps to its convention's grammar; the text may come in any pieces.

    What may be the beginning of a call is held back, and white space before it. White space between the
    content and a call belongs to neither.
    """

    def __init__(self, convention: Convention, *, trigger_id: int | None, anchored: bool) -> None:
        """`trigger_id`: the trigger is this special token, which has no text. `anchored`: calls come at the
        very beginning or not at all.
        """
        self.num_calls = 0
        self._trigger_id = trigger_id
        self._anchored = anchored
        # A tokenizer may drop the space behind a special token.
        opening = convention.trigger + convention.first if trigger_id is None else convention.first.lstrip()
        self._opening = opening if trigger_id is None else ""  # "": no call can begin yet
        self._armed_opening = opening
        self._head = re.compile(_NAME + re.escape(convention.middle))
        self._next_head = re.compile(
            re.escape(convention.next or "\0") + _NAME + re.escape(convention.middle)
        )
        self._in_content = True
        self._num_content = 0  # characters of content so far
        self._held = ""  # text that is not decided yet
        self._arguments: _ObjectEnd | None = None  # of the call that is being read

    def push(self, text: str, token_id: int | None = None) -> list[Delta]:
        """What `text` adds; `token_id`: the token that it came with."""
        if token_id is not None and token_id == self._trigger_id:
            self._opening = self._armed_opening
        self._held += text
        deltas: list[Delta] = []
        while self._held and self._advance(deltas):
            pass
        return deltas

    def finish(self, *, cut: bool) -> list[Delta]:
        """What is still held back, at the end. `cut`: the answer was broken off, so that what may be the
        beginning of a call most likely is, and is dropped.
        """
        held, self._held = self._held, ""
        if not self._in_content:
            return []
        end = len(held) - (self._undecided(held) if cut else 0)
        return [ContentDelta(held[:end])] if end else []

    def _advance(self, deltas: list[Delta]) -> bool:
        """Take one step; returns whether another may follow."""
        if self._in_content:
            return self._read_content(deltas)
        if self._arguments is None:
            return self._read_head(deltas)
        text, self._held = self._arguments.split(self._held)
        if self._arguments.found:
            self._arguments = None
        deltas.append(CallDelta(self.num_calls - 1, arguments=text))
        return self._arguments is None

    def _read_content(self, deltas: list[Delta]) -> bool:
        start = self._held.find(self._opening) if self._opening else -1
        if (start > 0 and self._anchored) or (start == 0 and self._anchored and self._num_content):
            start = -1
        if start >= 0:
            content, self._held = self._held[:start].rstrip(), self._held[start + len(self._opening) :]
            self._in_content = False
        else:
            end = len(self._held) - self._undecided(self._held)
            content = self._held[:end].rstrip()
            self._held = self._held[len(content) :]
        if content:
            self._num_content += len(content)
            deltas.append(ContentDelta(content))
        return start >= 0

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that may be the beginning of a call."""
        longest = min(len(text), len(self._opening) - 1)
        if self._anchored:
            whole = not self._num_content and len(text) <= longest and self._opening.startswith(text)
            return len(text) if whole else 0
        return next((n for n in range(longest, 0, -1) if self._opening.startswith(text[-n:])), 0)

    def _read_head(self, deltas: list[Delta]) -> bool:
        """Read up to the arguments of the next call."""
        head = (self._next_head if self.num_calls else self._head).match(self._held)
        if head is None:
            return False
        self._held = self._held[head.end() :]
        self._arguments = _ObjectEnd()
        deltas.append(CallDelta(self.num_calls, name=head[1]))
        self.num_calls += 1
        return True


class _ObjectEnd:
    """Finds where a JSON object ends."""

    def __init__(self) -> None:
        self.found = False
        self._depth = 0
        self._in_string = False
        self._escaped = False  # the next character of the string is

    def split(self, text: str) -> tuple[str, str]:
        """What belongs to the object, and the rest."""
        position = 0
        while position < len(text):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            match = (_IN_STRING if self._in_string else _STRUCTURE).search(text, position)
            if match is None:
                break
            position = match.end()
            self._take(match[0])
            if self.found:
                return text[:position], text[position:]
        return text, ""

    def _take(self, character: str) -> None:
        if character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = not self._in_string
        else:
            self._depth += 1 if character in "{[" else -1
            self.found = self._depth == 0
