"""Prefill and decode at full speed on one executor, measured in turns so that all see the same machine."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

from flashlet.model.executor import Executor, KvDtype
from flashlet.serving.bench.case import Case, Meter, token_hash
from flashlet.serving.bench.measurement import BenchReport
from flashlet.serving.bench.options import BenchOptions
from flashlet.serving.bench.step_cost import decode_bytes, int8_weight_bytes, step_macs
from flashlet.serving.bench.workload import Workload
from flashlet.serving.machine import cpu_name
from flashlet.serving.memory import kv_bytes_per_token

Progress = Callable[[str], None]


def run_bench(
    executor: Executor, model: str, kv_dtype: KvDtype, options: BenchOptions, progress: Progress | None = None
) -> BenchReport:
    """Measure `executor`, whose pool must hold `options.kv_tokens`; `progress` gets a line now and then.

    Every repeat measures every case once, so a machine that slows down does so for all of them.

    Raises:
        UnsupportedModelError: the model's context is too short for the options.
        OutOfMemoryError: the KV pool is too small.
    """
    options.check(executor.config)
    report = progress or (lambda _: None)
    report("filling the contexts")
    cases = _cases(executor, kv_dtype, options)
    meter = Meter(executor)
    for case in cases:  # warm-up
        case.run(meter)
    for repeat in range(options.repeats):
        for case in cases:
            report(f"repeat {repeat + 1} of {options.repeats}: {case.kind}, batch {case.batch_size}")
            case.sample(meter)
    measurements = tuple(case.measurement() for case in cases)
    reads = [rate for case in cases for rate in case.reads]
    single = [item for item in measurements if item.kind == "decode" and item.batch_size == 1]
    decodes = [case for case in cases if case.kind == "decode" and case.workload is cases[1].workload]
    return BenchReport(
        model=model,
        executor=executor.name,
        cpu=cpu_name(),
        kv_dtype=kv_dtype,
        weight_bytes=int8_weight_bytes(executor.config) if reads else None,
        kv_bytes_per_token=kv_bytes_per_token(executor.config, kv_dtype),
        read_gb_per_second=statistics.median(reads) / 1e9 if reads else None,
        context_cost=single[-1].tokens_per_second / single[0].tokens_per_second if len(single) > 1 else None,
        output_hash=token_hash(cases[1].sequence_tokens(0)),
        batch_invariant=all(
            case.sequence_tokens(i) == other.sequence_tokens(i)
            for case, other in itertools.pairwise(decodes)
            for i in range(min(case.batch_size, other.batch_size))
        ),
        measurements=measurements,
    )


def _cases(executor: Executor, kv_dtype: KvDtype, options: BenchOptions) -> list[Case]:
    """The prefill, one decode case per batch size, and one at the long context; contexts are filled."""
    next_block = 0

    def workload(count: int, context: int, new_tokens: int) -> Workload:
        nonlocal next_block
        made = Workload(executor, next_block, count, context, new_tokens, options.max_step_tokens)
        next_block += made.num_blocks
        if new_tokens:
            made.prefill()
        return made

    def decode(source: Workload, batch_size: int) -> Case:
        steps = options.decode_tokens
        contexts = range(source.context + 1, source.context + steps + 1)  # of one sequence, step by step
        num_bytes = sum(decode_bytes(executor.config, kv_dtype, [length] * batch_size) for length in contexts)
        macs = batch_size * step_macs(executor.config, contexts, steps)
        return Case("decode", source, batch_size, steps, steps, num_bytes, macs)

    prompt = options.prompt_tokens
    chunks = -(-prompt // options.max_step_tokens)
    macs = step_macs(executor.config, range(1, prompt + 1), chunks)
    short = workload(max(options.batch_sizes), options.context, options.decode_tokens)
    cases = [Case("prefill", workload(1, prompt, 0), 1, prompt, chunks, 0, macs)]
    cases += [decode(short, batch_size) for batch_size in options.batch_sizes]
    if long := options.second_context(executor.config):
        cases.append(decode(workload(1, long, options.decode_tokens), 1))
    return cases
