"""What one rendering of a chat template may use: time, size of a value, bytes in all.

A template comes with a model file and is as untrusted as the file. Every step that costs more than constant
time goes through `Budget`, so it ends in ChatTemplateError before it costs much.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Undefined
from jinja2.runtime import LoopContext, Macro
from jinja2.utils import Namespace

from flashlet.model.errors import ChatTemplateError

CPU_SECONDS = 1.0  # of the rendering thread
BASE_SIZE = 1 << 20  # of one value or of the output, in characters, for no input at all
INPUT_FACTOR = 4  # and this much more per character of input
TOTAL_FACTOR = 64  # all values of a rendering together, relative to one
NODE_SIZE = 16  # what an element, a key or a number counts in characters
MAX_DEPTH = 64
MAX_INTEGER_BITS = 4096


class Budget:
    """Limits of one rendering, sized by its input; not thread-safe."""

    def __init__(self, inputs: object) -> None:
        """`inputs`: plain data that the template gets to see."""
        self.limit = BASE_SIZE
        self.limit = BASE_SIZE + INPUT_FACTOR * _size(inputs, float("inf"), MAX_DEPTH)
        self._total = TOTAL_FACTOR * self.limit
        self._deadline = time.thread_time() + CPU_SECONDS
        self._next_look = time.monotonic() + CPU_SECONDS

    def step(self) -> None:
        """One operation of the template; raises when the time is up."""
        now = time.monotonic()
        if now < self._next_look:  # CPU time never runs faster than the clock, and costs more to ask for
            return
        left = self._deadline - time.thread_time()
        if left <= 0:
            raise ChatTemplateError(f"the chat template ran for more than {CPU_SECONDS:g} s of CPU time")
        self._next_look = now + left

    def require(self, size: int) -> None:
        """Refuse a value of `size` characters before it is made, and count it."""
        self.step()
        if size > self.limit:
            raise ChatTemplateError(
                f"the chat template made a value of {size} characters; limit {self.limit}"
            )
        self._total -= size
        if self._total < 0:
            raise ChatTemplateError(
                f"the chat template made more than {TOTAL_FACTOR * self.limit} characters"
            )

    def check(self, value: Any) -> Any:
        """`value` as it is, counted; refused if it is too large or holds more than plain data."""
        if isinstance(value, str):
            self.require(len(value))
        elif isinstance(value, (list, tuple, dict)):
            _size(value, self.limit, MAX_DEPTH)
            self.require(NODE_SIZE * len(value))
        elif isinstance(value, int):
            _check_bits(value)
            self.step()
        elif value is None or isinstance(value, (float, range, Undefined, Namespace, Macro, LoopContext)):
            self.step()
        else:
            raise ChatTemplateError(f"the chat template made a value of type {type(value).__name__}")
        return value

    def text(self, value: Any) -> str:
        """`value` as it appears in the output."""
        if isinstance(value, str):
            self.require(len(value))
            return value
        if isinstance(value, (Namespace, Macro, LoopContext)):
            raise ChatTemplateError(f"the chat template printed a value of type {type(value).__name__}")
        text = str(self.check(value))
        self.require(len(text))
        return text

    def output(self, pieces: Iterable[str]) -> str:
        """The whole output, stopped as soon as it is too long."""
        kept: list[str] = []
        length = 0
        for piece in pieces:
            length += len(piece)
            if length > self.limit:
                raise ChatTemplateError(
                    f"the chat template's output is over the limit of {self.limit} characters"
                )
            kept.append(piece)
        return "".join(kept)

    def size(self, value: Any) -> int:
        """Characters that `value` counts, everything in it included."""
        return _size(value, self.limit, MAX_DEPTH)


class CountedIterable:
    """An iterable whose every element is one step; has a length if the original has one."""

    def __init__(self, value: Any, budget: Budget) -> None:
        self._value = value
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        for element in self._value:
            self._budget.step()
            yield element

    def __len__(self) -> int:
        return len(self._value)


def _size(value: Any, limit: float, depth: int) -> int:
    """Characters of plain data, strings and elements together; raises once it is over `limit`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, (list, tuple, dict)):
        if depth == 0:
            raise ChatTemplateError(
                f"data for or from the chat template is nested more than {MAX_DEPTH} deep"
            )
        total = 0
        for key in value:
            total += NODE_SIZE + _size(key, limit, depth - 1)
            if isinstance(value, dict):
                total += _size(value[key], limit, depth - 1)
            if total > limit:
                raise ChatTemplateError(
                    f"the chat template made a value over the limit of {limit} characters"
                )
        return total
    if isinstance(value, int):
        _check_bits(value)
    elif value is not None and not isinstance(value, (float, Undefined)):
        raise ChatTemplateError(f"expected plain data around the chat template, found {type(value).__name__}")
    return NODE_SIZE


def _check_bits(value: int) -> None:
    if value.bit_length() > MAX_INTEGER_BITS:
        raise ChatTemplateError(f"the chat template made an integer of more than {MAX_INTEGER_BITS} bits")
