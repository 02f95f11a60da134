"""The canary prompt: its result is known or recorded once, and every start must give it again.

A start that does not has bad memory, damaged weights or a miscompiled kernel, and must not answer. Results
for the default model are shipped (canary_records.json, written by scripts/record_canary.py).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import time
from pathlib import Path

import msgspec

from flashlet.model.executor import Executor, ExecutorOptions
from flashlet.model.fingerprint import Fingerprint, is_exact, write_atomically
from flashlet.model.sampling import NoTokenError, SampleRequest, SamplingParams
from flashlet.model.step import SequenceSlice, Step
from flashlet.model.weight_cache import default_cache_dir

VERSION = 1  # raise it whenever the steps below change
# New tokens per step: a prompt, single tokens, and a chunk behind them, because kernels differ by row count.
STEPS = (20, 1, 1, 1, 1, 8, 1, 1)
SHIPPED = Path(__file__).with_name("canary_records.json")
_CAUSES = "Bad memory, damaged weights in the cache or a miscompiled kernel can do that: docs/receipts.md."
_GREEDY = SamplingParams(temperature=0)

logger = logging.getLogger(__name__)


class CanaryResult(msgspec.Struct, frozen=True):
    """What the canary prompt gave."""

    tokens: list[int]  # one per step, greedy
    states: str  # SHA-256 over the last hidden states of all tokens; empty where they agree to rounding only


def canary_problem(executor: Executor, options: ExecutorOptions, fingerprint: Fingerprint) -> str | None:
    """Run the canary prompt, and compare its result, or record it if none is known; says what is wrong.

    Call it while nothing else uses the executor: it writes into the first blocks of the KV pool.
    """
    expected = expected_result(fingerprint)
    started = time.perf_counter()
    try:
        result = run_canary(executor, options)
    except NoTokenError as error:
        return f"the canary prompt failed: {error}. {_CAUSES}"
    logger.info("the canary prompt took %.0f ms", 1e3 * (time.perf_counter() - started))
    if result is None or result == expected:
        return None
    if expected is None:
        _record(record_path(fingerprint), result)
        return None
    pairs = enumerate(zip(result.tokens, expected.tokens, strict=False))
    wrong = [index for index, (ours, theirs) in pairs if ours != theirs]
    what = f"token {wrong[0]} differs" if wrong else "the tokens agree, the hidden states do not"
    if record_key(fingerprint) in shipped_records():
        return f"the canary prompt gave another result than on every sound machine ({what}). {_CAUSES}"
    return (
        f"the canary prompt gave another result than the one recorded in {record_path(fingerprint)} "
        f"({what}). {_CAUSES} If it is the record that is wrong, delete it and start again"
    )


def expected_result(fingerprint: Fingerprint) -> CanaryResult | None:
    """The result that is shipped for a model, or else the one recorded here; None if there is neither."""
    shipped = shipped_records().get(record_key(fingerprint))
    return shipped or read_record(record_path(fingerprint))


@functools.cache
def shipped_records() -> dict[str, CanaryResult]:
    """Results that hold on every machine, by `record_key`."""
    return msgspec.json.decode(SHIPPED.read_bytes(), type=dict[str, CanaryResult])


def record_key(fingerprint: Fingerprint) -> str:
    """What a result depends on, as a hash. A new version of flashlet must give the same."""
    return hashlib.sha256(f"{VERSION}\n{fingerprint.numbers}".encode()).hexdigest()[:24]


def record_path(fingerprint: Fingerprint) -> Path:
    """Where the result for a model that none is shipped for is recorded."""
    return default_cache_dir() / "canary" / f"{record_key(fingerprint)}.json"


def run_canary(executor: Executor, options: ExecutorOptions) -> CanaryResult | None:
    """The result on this executor; None where the prompt does not fit. Raises NoTokenError."""
    config = executor.config
    num_tokens = sum(STEPS)
    num_blocks = -(-num_tokens // executor.block_size)
    fits = num_tokens < config.context_length and max(STEPS) <= options.max_step_tokens
    if not fits or num_blocks > executor.num_blocks:
        return None
    given = [(37 * index * index + 11 * index + 5) % config.vocab_size for index in range(num_tokens)]
    digest, tokens, start = hashlib.sha256(), [given[0]], 0
    for count in STEPS:
        piece = SequenceSlice(
            token_ids=[tokens[-1], *given[start + 1 : start + count]],
            start=start,
            block_table=[*range(num_blocks)],
            samples=[SampleRequest(_GREEDY, start + count)],
            features=(config.num_layers + 1,),
        )
        (output,) = executor.execute(Step([piece]))
        assert output.features is not None
        digest.update(output.features.tobytes())
        tokens.append(output.token_ids[0])
        start += count
    return CanaryResult(tokens[1:], digest.hexdigest() if is_exact(options) else "")


def read_record(path: Path) -> CanaryResult | None:
    """The recorded result; None if there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CanaryResult)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        logger.warning("the canary's record %s cannot be read and is written again: %s", path, error)
        return None


def _record(path: Path, result: CanaryResult) -> None:
    try:
        write_atomically(path, msgspec.json.encode(result).decode())
    except OSError as error:
        logger.warning("the canary's result cannot be recorded in %s: %s", path, error)
