"""Time limits: refused where they are out of reach, and what happens when they pass."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.retry_times import RetryTimes
from flashlet.serving.engine.sequence import Sequence
from flashlet.serving.errors import DeadlineError, QueueFullError


def request(prompt: bytes = b"hello", max_tokens: int = 60, **options: object) -> GenerationRequest:
    return GenerationRequest(tuple(prompt), max_tokens=max_tokens, ignore_eos=True, **options)  # type: ignore[arg-type]


def slow(engine: Engine, ms: float) -> Engine:
    """Let the engine believe that steps take so long."""
    engine.scheduler.times.seed([(1, ms), (2, ms), (4, ms)])
    return engine


@pytest.mark.parametrize("name", ["max_ttft_ms", "deadline_ms"])
def test_what_is_out_of_reach_is_refused_at_once(toy: SimpleNamespace, name: str) -> None:
    engine = slow(toy.engine(), 1000.0)
    with pytest.raises(DeadlineError) as caught:
        engine.submit(request(**{name: 500.0}))
    assert (caught.value.param, caught.value.code) == (name, "deadline_unreachable")
    assert caught.value.retry_after >= 0.5 and "about" in str(caught.value)
    assert not engine.has_work
    engine.cancel(engine.submit(request(**{name: 1e6})))


def test_an_answer_is_cut_when_its_time_is_over(toy: SimpleNamespace) -> None:
    engine: Engine = toy.engine()
    sequence = engine.submit(request(deadline_ms=1e7, stop=("no such text",)))
    for _ in range(5):
        engine.step()
    sequence.times.arrival -= 1e4
    ((ended, event),) = engine.step()
    assert ended is sequence and isinstance(event, TokenEvent)
    assert (event.token_id, event.finish_reason, event.num_output_tokens) == (None, "length", 5)
    assert not engine.has_work


def test_text_that_was_held_back_comes_at_the_end(toy: SimpleNamespace) -> None:
    whole = toy.run_alone(request(), 128).text
    engine: Engine = toy.engine()
    sequence = engine.submit(request(deadline_ms=1e7, stop=(whole[:10] + "?",)))
    text = ""
    for _ in range(6):
        text += "".join(event.text for _, event in engine.step() if isinstance(event, TokenEvent))
    assert text == ""
    sequence.times.arrival -= 1e4
    ((_, event),) = engine.step()
    assert isinstance(event, TokenEvent) and event.text and whole.startswith(event.text)


def test_a_first_token_that_comes_too_late_is_an_error(toy: SimpleNamespace) -> None:
    engine: Engine = toy.engine(max_sequences=1)
    first = engine.submit(request(b"abc", max_ttft_ms=1e7))
    engine.step()
    waiting = engine.submit(request(b"def", max_ttft_ms=1e7))
    for sequence in (first, waiting):
        sequence.times.arrival -= 2e4
    events: dict[Sequence, object] = dict(engine.step())
    assert isinstance(events[first], TokenEvent)  # had its first token in time
    error = events[waiting]
    assert isinstance(error, DeadlineError) and error.code == "deadline_passed"
    assert [*engine.scheduler.running] == [first]
    engine.cancel(first)


@pytest.mark.parametrize("options", [{"prompt_logprobs": 0}, {"max_tokens": 0}])
def test_there_is_no_part_of_a_prompt_that_was_not_read(
    toy: SimpleNamespace, options: dict[str, int]
) -> None:
    engine: Engine = toy.engine(max_step_tokens=8, max_sequences=2)
    sequence = engine.submit(replace(request(b"x" * 40, deadline_ms=1e7), **options))
    engine.step()
    sequence.times.arrival -= 1e4
    ((_, error),) = engine.step()
    assert isinstance(error, DeadlineError) and not engine.has_work


def test_refused_clients_get_different_places_in_order() -> None:
    times = RetryTimes(lambda: [1.0, 2.0, 4.0])
    waits = [times.next() for _ in range(6)]
    for wait, place in zip(waits, (1.0, 2.0, 4.0, 4 + 4 / 3, 4 + 8 / 3, 8.0), strict=True):
        assert place * 0.99 <= wait <= place * 1.1


def test_clients_that_come_at_once_are_spread_over_short_times_too() -> None:
    times = RetryTimes(lambda: [0.01 * i for i in range(1, 21)])
    waits = [times.next() for _ in range(20)]
    assert waits[0] >= 0.05 and waits[-1] >= 0.13


def test_a_far_place_is_not_promised() -> None:
    times = RetryTimes(lambda: [30.0 * i for i in range(1, 5)])
    waits = [times.next() for _ in range(50)]
    assert waits[0] < waits[1] <= 66 and all(45 <= wait <= 60 for wait in waits[2:])
    assert len(set(waits)) == 50


def test_a_full_queue_says_when_there_is_a_place(toy: SimpleNamespace) -> None:
    engine = slow(toy.engine(max_sequences=2, max_waiting=2), 100.0)
    for i in range(4):
        engine.submit(request(bytes([97 + i]), 10 * (i + 1)))
    waits = []
    for _ in range(4):
        with pytest.raises(QueueFullError) as caught:
            engine.submit(request())
        waits.append(caught.value.retry_after)
    assert 0.9 < waits[0] < 1.4 and waits[1] > waits[0] + 0.5
    assert waits == sorted(waits)
    for sequence in [*engine.scheduler.running, *engine.scheduler.waiting]:
        engine.cancel(sequence)
