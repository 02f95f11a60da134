"""When a sequence ends, and which text may be shown before that is certain."""

from __future__ import annotations

from typing import Protocol

from flashlet.serving.engine.request import FinishReason, GenerationRequest


class StreamDecoder(Protocol):
    """Turns the tokens of one sequence into text, whole characters at a time."""

    def push(self, token_id: int) -> str:
        """Text that this token completes, perhaps empty."""

    def finish(self) -> str:
        """What is still held back, such as the bytes of half a character."""


class StopChecker:
    """Decodes the answer of one sequence and finds its end.

    A stop string is found by the token that completes it; the text is then cut at the earliest start of
    such a match (the shortest of several at that place). Text that may become a stop string is held back.
    A match that is complete before `min_tokens` tokens is ordinary text, and so is all that begins behind
    `stops_before`.
    """

    def __init__(
        self,
        request: GenerationRequest,
        decoder: StreamDecoder,
        max_tokens: int,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        self._decoder = decoder
        self._max_tokens = max_tokens
        self._min_tokens = request.min_tokens
        self._stop = tuple(sorted(request.stop, key=len))
        self._longest_stop = max(map(len, request.stop), default=0)
        self._first_characters = {stop[0] for stop in request.stop}
        self._include_stop = request.include_stop
        self._requested_ids = frozenset(request.stop_token_ids)
        # The end of a grammar is EOS, also where it is to be put off for as long as possible.
        ignores_eos = request.ignore_eos and request.grammar is None
        self._stop_ids = self._requested_ids.union(() if ignores_eos else eos_token_ids)
        self._eos_ids = frozenset(() if ignores_eos else eos_token_ids)
        self._stops_before = request.stops_before if request.stop or request.stop_token_ids else None
        self._may_stop = True  # `stops_before` has not come
        self._tail = ""  # end of the shown text, where a text to stop before may have begun
        self._held = ""  # the longest end of the text that begins a stop string
        self.matched: str | None = None  # the stop string that ended the sequence

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end the sequence, each once, in ascending order."""
        return tuple(sorted(self._stop_ids))

    def push(self, token_id: int, num_output_tokens: int) -> tuple[str, FinishReason | None]:
        """Take generated token `num_output_tokens`, from 1; return the text to show and the end, if any."""
        reason: FinishReason | None = None
        text = ""
        if token_id == self._stops_before:
            self._may_stop = False
        if token_id in (self._stop_ids if self._may_stop else self._eos_ids):
            reason = "stop"
        elif num_output_tokens >= self._max_tokens:
            reason = "length"
        if reason != "stop" or (self._include_stop and token_id in self._requested_ids):
            text = self._decoder.push(token_id)
        if reason is not None:
            text += self._decoder.finish()
        if not self._stop and not isinstance(self._stops_before, str):
            return text, reason
        return self._match(text, reason, num_output_tokens >= self._min_tokens)

    def flush(self) -> str:
        """What is still held back, for a sequence that ends here whatever might have followed."""
        held, self._held = self._held, ""
        return held + self._decoder.finish()

    def _match(
        self, new: str, reason: FinishReason | None, may_stop: bool
    ) -> tuple[str, FinishReason | None]:
        """Look for stop strings that end inside the `new` text."""
        text = self._held + new
        found, found_at = "", self._end_of_stops(text)
        for stop in self._stop if may_stop else ():  # shortest first
            # A match may begin in the held text but ends in the new; older ones came before min_tokens.
            start = text.find(stop, max(0, len(self._held) - len(stop) + 1))
            if 0 <= start < found_at:
                found, found_at = stop, start
        if found:
            self.matched = found
            return text[: found_at + len(found) if self._include_stop else found_at], "stop"
        shown = len(text) if reason is not None or not self._may_stop else self._undecided_from(text)
        self._held = text[shown:]
        if isinstance(self._stops_before, str):
            self._tail = (self._tail + text[:shown])[1 - len(self._stops_before) :]
        return text[:shown], reason

    def _end_of_stops(self, text: str) -> int:
        """Index in `text`, which follows the shown one, from which on no stop string counts."""
        if self._may_stop and isinstance(self._stops_before, str):
            end = (self._tail + text).find(self._stops_before)
            if end >= 0:
                self._may_stop = False
                return end - len(self._tail)
        return len(text) if self._may_stop else 0

    def _undecided_from(self, text: str) -> int:
        """First index from which `text` is the beginning of a stop string, or its length."""
        for index in range(max(0, len(text) - self._longest_stop + 1), len(text)):
            if text[index] in self._first_characters:
                tail = text[index:]
                if any(len(stop) > len(tail) and stop.startswith(tail) for stop in self._stop):
                    return index
        return len(text)
