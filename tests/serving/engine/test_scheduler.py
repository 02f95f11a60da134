"""Who gets which tokens of a step."""

from __future__ import annotations

import dataclasses
import random
import struct
from types import SimpleNamespace

from flashlet.model.sampling import SamplingParams, TokenLogprobs
from flashlet.serving.engine.engine import Engine
from flashlet.serving.engine.request import GenerationRequest, TokenEvent
from flashlet.serving.engine.step_times import StepTimes


def request(prompt: bytes = b"hello", max_tokens: int | None = 8, **options: object) -> GenerationRequest:
    options = {"ignore_eos": True, **options}
    return GenerationRequest(tuple(prompt), max_tokens=max_tokens, **options)  # type: ignore[arg-type]


def quick(engine: Engine) -> Engine:
    """Let the scheduler believe that steps are quick, however busy the machine is."""
    times = engine.scheduler.budget._times = StepTimes()  # not the ones that learn
    times.seed([(1, 0.1)])
    return engine


def widths(executor: object) -> list[list[int]]:
    """Tokens per slice, step by step."""
    return [[len(piece.token_ids) for piece in step.slices] for step in executor.steps]  # type: ignore[attr-defined]


def test_decodes_advance_in_each_step_while_a_long_prompt_is_prefilled(toy: SimpleNamespace) -> None:
    executor = toy.Executor(num_blocks=64)
    engine = quick(toy.engine(executor, prefill_chunk=7, max_step_tokens=32, max_sequences=8))
    decoding = [engine.submit(request(bytes([97 + i]) * 3, 60)) for i in range(4)]
    engine.step()
    late = [engine.submit(request(bytes([110 + i]) * 50, 5)) for i in range(2)]
    while any(sequence.num_output_tokens == 0 for sequence in late):
        advanced = {sequence for sequence, _ in engine.step()}
        assert advanced.issuperset(decoding)
    # 2 * 50 prompt tokens, 7 a step; the 50th of each is a row like any decode's, and brings a token
    prompt_tokens = [
        sum(token_id in {110, 111} for piece in step.slices for token_id in piece.token_ids)
        for step in executor.steps[1:]
    ]
    assert prompt_tokens == [7] * 7 + [1 + 7] + [7] * 6 + [1]
    for sequence in [*decoding, *late]:
        engine.cancel(sequence)


def test_prompts_take_the_whole_budget_while_nothing_decodes(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    engine = quick(toy.engine(executor, prefill_chunk=4, max_step_tokens=32, max_sequences=8))
    toy.run(engine, [request(b"a" * 50, 2), request(b"b" * 20, 1)])
    assert widths(executor) == [[32], [18, 14], [1, 4], [2]]


def test_no_step_exceeds_its_limits(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    engine = toy.engine(executor, max_sequences=3, max_step_tokens=10, prefill_chunk=4)
    toy.run(engine, [request(bytes([97 + i]) * (3 * i + 1), 6) for i in range(8)])
    assert all(sum(step) <= 10 and len(step) <= 3 for step in widths(executor))


def test_waiting_sequences_start_in_order_of_arrival(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor(num_blocks=16), max_sequences=2)
    sequences = [engine.submit(request(bytes([97 + i]) * n, 4)) for i, n in enumerate((4, 4, 40, 4, 4))]
    while engine.has_work:
        engine.step()
    started = [sequence.times.first_scheduled for sequence in sequences]
    assert started == sorted(started)


def test_the_last_to_arrive_gives_up_its_blocks_and_stays_ahead_of_the_queue(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor(num_blocks=8), max_sequences=2)
    first, second = engine.submit(request(b"abcd", 27)), engine.submit(request(b"efgh", 20))
    third = engine.submit(request(b"x", 1))
    while engine.stats().preemptions == 0:
        engine.step()
        engine.check_integrity()
    assert [*engine.scheduler.running] == [first]
    assert [*engine.scheduler.waiting] == [second, third]
    assert second.block_table == [] and second.num_computed == 0
    while engine.has_work:
        engine.step()
    assert engine.stats().preemptions == 1


def test_nobody_is_admitted_only_to_be_preempted_by_the_next_decode(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor(num_blocks=4))
    engine.submit(request(b"abcdefg", 6))  # 2 blocks of 4 tokens, soon a third
    engine.submit(request(b"hgfedcba", 4))  # its prompt alone would fit into the other 2
    while engine.has_work:
        engine.step()
    assert engine.stats().preemptions == 0


def test_equal_prompts_are_computed_once(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    engine = toy.engine(executor, prefill_chunk=8, max_step_tokens=16, max_sequences=8)
    prompt = b"abcdefgh" * 4 + b"xy"
    answers = toy.run(engine, [request(prompt, 3, sampling=SamplingParams(seed=i)) for i in range(4)])
    computed = sum(map(sum, widths(executor)))
    assert computed == len(prompt) + 3 * 2 + 4 * 2  # the others: the 2 tokens behind the last full block
    assert [answer.events[0].num_cached_tokens for answer in answers] == [0, 32, 32, 32]
    stats = engine.stats()
    assert (stats.prefix_queries, stats.prefix_hits) == (4 * 34, 3 * 32)
    assert (stats.prompt_tokens, stats.generation_tokens) == (4 * 34, 4 * 3)


def test_the_beginning_of_a_cached_block_is_not_computed_again(toy: SimpleNamespace) -> None:
    executor = toy.Executor(block_size=8)
    engine = toy.engine(executor)
    toy.run(engine, [request(b"abcdefghijklmnop", 3)])
    executor.steps.clear()
    (answer,) = toy.run(engine, [request(b"abcdefghijklmXY", 3)])
    assert answer.events[0].num_cached_tokens == 13
    first = executor.steps[0].slices[0]
    assert (first.start, len(first.token_ids), first.copied_block) == (13, 2, 1)
    assert all(step.slices[0].copied_block is None for step in executor.steps[1:])
    (alone,) = toy.run(toy.engine(toy.Executor(block_size=8)), [request(b"abcdefghijklmXY", 3)])
    assert answer.tokens == alone.tokens


def test_a_sequence_that_awaits_a_prefix_does_not_hold_up_others(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor(), max_step_tokens=64)
    shared = b"abcdefgh" * 2
    first, second = engine.submit(request(shared + b"x")), engine.submit(request(shared + b"y"))
    other = engine.submit(request(b"other"))
    assert {sequence for sequence, _ in engine.step()} == {first, other}
    assert second in {sequence for sequence, _ in engine.step()}
    for sequence in (first, second, other):
        engine.cancel(sequence)


def test_a_sequence_computes_its_prefix_itself_if_the_other_leaves(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor(), max_step_tokens=8, max_sequences=4)
    first, second = engine.submit(request(b"abcdefgh" * 4)), engine.submit(request(b"abcdefgh" * 4))
    engine.step()
    assert second.block_table == []
    engine.cancel(first)
    engine.step()
    assert second.num_cached_tokens == 8 and second.num_computed == 16
    engine.cancel(second)


def test_prompt_scores_come_once_before_the_first_token_and_skip_the_cache(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    engine = toy.engine(executor, max_step_tokens=8, max_sequences=4)
    prompt = b"abcdefgh" * 2
    (reference,) = toy.run(engine, [request(prompt, 2)])
    (scored,) = toy.run(engine, [request(prompt, 2, prompt_logprobs=1)])
    assert scored.tokens == reference.tokens
    assert [event.token_id is None for event in scored.events] == [True, False, False]
    scores = scored.events[0].prompt_logprobs
    assert scores is not None and scores[0] is None and len(scores) == 16
    assert [score.token_id for score in scores[1:]] == [*prompt[1:]]
    assert all(isinstance(score, TokenLogprobs) and len(score.top) == 1 for score in scores[1:])
    assert all(event.prompt_logprobs is None for event in scored.events[1:])
    assert scored.events[0].num_cached_tokens == 0


def test_zero_tokens_score_the_prompt_only(toy: SimpleNamespace) -> None:
    (scored,) = toy.run(toy.engine(), [request(b"abc", 0, prompt_logprobs=0)])
    (event,) = scored.events
    assert (event.token_id, event.finish_reason, event.num_output_tokens) == (None, "length", 0)
    assert len(event.prompt_logprobs) == 3
    (plain,) = toy.run(toy.engine(), [request(b"a", 0)])
    assert plain.events == [TokenEvent(None, "", finish_reason="length", num_prompt_tokens=1)]


def test_stop_tokens_are_suppressed_until_min_tokens(toy: SimpleNamespace) -> None:
    executor = toy.Executor()
    wanted = request(b"abc", 9, min_tokens=4, stop_token_ids=(5,), ignore_eos=False)
    (answer,) = toy.run(toy.engine(executor), [wanted])
    suppressed = [tuple(step.slices[0].samples[0].suppressed) for step in executor.steps]
    assert suppressed == ([(5, toy.EOS)] * 4 + [()] * 5)[: len(answer.tokens)]
    assert len(answer.tokens) >= 4


def test_history_is_sent_only_where_it_is_needed(toy: SimpleNamespace) -> None:
    for penalty in (0.0, 0.5):
        executor = toy.Executor()
        params = SamplingParams(frequency_penalty=penalty)
        (answer,) = toy.run(toy.engine(executor), [request(b"abc", 3, sampling=params)])
        last = executor.steps[-1].slices[0].samples[0]
        assert [*last.prompt, *last.output] == ([*b"abc", *answer.tokens[:2]] if penalty else [])


def test_lower_priority_numbers_start_first(toy: SimpleNamespace) -> None:
    engine = toy.engine(max_sequences=1)
    priorities = [0, 3, -1, 3, 0]
    sequences = [engine.submit(request(bytes([97 + i]), 2, priority=p)) for i, p in enumerate(priorities)]
    while engine.has_work:
        engine.step()
    ends = [sequence.times.last_token for sequence in sequences]
    assert sorted(range(5), key=lambda i: ends[i]) == [2, 0, 4, 1, 3]


def test_the_highest_priority_number_gives_up_its_blocks(toy: SimpleNamespace) -> None:
    engine = toy.engine(toy.Executor(num_blocks=8), max_sequences=2)
    early, late = engine.submit(request(b"abcd", 20, priority=1)), engine.submit(request(b"efgh", 27))
    while engine.stats().preemptions == 0:
        engine.step()
        engine.check_integrity()
    assert [*engine.scheduler.running] == [late] and [*engine.scheduler.waiting] == [early]
    while engine.has_work:
        engine.step()


def test_tokens_do_not_depend_on_priorities(toy: SimpleNamespace) -> None:
    rng = random.Random(5)
    requests = [toy.random_request(rng, [tuple(b"abcdefgh" * 2)], 30) for _ in range(40)]
    ranked = [dataclasses.replace(item, priority=rng.randint(-2, 2)) for item in requests]
    engine = toy.engine(toy.Executor(num_blocks=9, context_length=30), max_sequences=6)
    answers = toy.run(engine, ranked)
    assert engine.stats().preemptions
    for item, answer in zip(requests, answers, strict=True):
        assert answer.visible() == toy.run_alone(item, 30).visible()


def test_the_cache_is_shared_among_equal_salts_only(toy: SimpleNamespace) -> None:
    engine = toy.engine()
    prompt = b"abcdefgh" * 2

    def cached(salt: str, prompt: bytes = prompt) -> int:
        (answer,) = toy.run(engine, [request(prompt, 2, cache_salt=salt)])
        number: int = answer.events[0].num_cached_tokens
        return number

    assert [cached(salt) for salt in ("", "a", "b", "a", "b", "")] == [0, 0, 0, 12, 12, 12]
    first_block = struct.pack("<4I", *prompt[:4]).decode()  # a salt made to look like a block
    assert cached(first_block, prompt[4:]) == 0
