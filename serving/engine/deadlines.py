"""Ends sequences whose time is over."""

from __future__ import annotations

import random
import time

from flashlet.serving.engine.estimator import Estimate
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.engine.token_events import token_event
from flashlet.serving.errors import DeadlineError

RETRY_AFTER = 1.0  # seconds, after a limit that passed although it seemed within reach


def check_reachable(request: GenerationRequest, estimate: Estimate) -> None:
    """Raise DeadlineError if a time limit of `request` will be missed by all that is known."""
    for name, limit, expected in (
        ("max_ttft_ms", request.max_ttft_ms, estimate.ttft_ms),
        ("deadline_ms", request.deadline_ms, estimate.total_ms),
    ):
        if limit is not None and expected is not None and expected > limit:
            raise DeadlineError(
                f"{name}: expected within {limit:.0f} ms, it would take about {expected:.0f} ms now",
                name,
                "deadline_unreachable",
                (expected - limit) / 1e3 * random.uniform(1.0, 1.2),
            )


class Deadlines:
    """The sequences with a time limit. Owned by the engine's thread."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Watch `sequence`, if it has a limit."""
        if sequence.request.max_ttft_ms is not None or sequence.request.deadline_ms is not None:
            self._sequences.append(sequence)

    def late(self) -> list[tuple[Sequence, TokenEvent | DeadlineError]]:
        """Those to be ended now, with the last thing that their clients should see."""
        if not self._sequences:
            return []
        now = time.perf_counter()
        self._sequences = [item for item in self._sequences if not item.is_finished]
        found = [(item, event) for item in self._sequences if (event := _last_event(item, now)) is not None]
        ended = {item for item, _ in found}
        self._sequences = [item for item in self._sequences if item not in ended]
        return found


def _last_event(sequence: Sequence, now: float) -> TokenEvent | DeadlineError | None:
    """None while there is time."""
    request = sequence.request
    passed = 1e3 * (now - sequence.times.arrival)
    if request.deadline_ms is not None and passed >= request.deadline_ms:
        if sequence.max_tokens and not sequence.reads_whole_prompt:
            return token_event(sequence, text=sequence.stop_checker.flush(), reason="length")
        return _missed("deadline_ms", request.deadline_ms)  # there is no part of what was asked for
    limit = request.max_ttft_ms
    if limit is None or passed < limit or sequence.times.first_token is not None:
        return None
    return _missed("max_ttft_ms", limit)


def _missed(name: str, limit: float) -> DeadlineError:
    message = f"{name}: {limit:.0f} ms have passed"
    return DeadlineError(message, name, "deadline_passed", RETRY_AFTER * random.uniform(1.0, 2.0))
