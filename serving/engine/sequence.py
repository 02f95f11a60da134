"""One prompt and the tokens generated after it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from flashlet.model.sampling import TokenLogprobs
from flashlet.serving.engine.constraint import TokenConstraint
from flashlet.serving.engine.pooling import MeanPooling
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.engine.stop_checker import StopChecker

if TYPE_CHECKING:
    from flashlet.serving.engine.estimator import Estimate
    from flashlet.serving.engine.sequence_draft import SequenceDraft


class SequenceStatus(Enum):
    """Where a sequence stands; a finished, cancelled or failed one is FINISHED."""

    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


@dataclass(slots=True)
class SequenceTimes:
    """Moments in the life of a sequence, in seconds of time.perf_counter(). Written by the scheduler."""

    arrival: float = field(default_factory=time.perf_counter)
    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


class Sequence:
    """State of one sequence; each field has one writer."""

    __slots__ = (
        "block_hashes", "block_table", "constraint", "draft", "estimate", "index", "max_tokens",
        "num_accepted", "num_cached_tokens", "num_computed", "num_registered_blocks", "num_rejected",
        "pooling", "prompt_scores", "request", "status", "stop_checker", "stop_token_ids", "times", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        request: GenerationRequest,
        max_tokens: int,
        checker: StopChecker,
        constraint: TokenConstraint | None = None,
        pooling: MeanPooling | None = None,
    ) -> None:
        # fixed
        self.index = index  # order of arrival
        self.request = request
        self.max_tokens = max_tokens
        self.stop_checker = checker
        self.stop_token_ids = checker.stop_token_ids
        self.constraint = constraint  # follows the output; None: any token may come
        # written by the engine before it is queued
        self.estimate: Estimate | None = None
        # written by the scheduler
        self.tokens: list[int] = list(request.prompt)  # prompt, then output
        self.status = SequenceStatus.WAITING
        self.num_computed = 0  # leading tokens whose K and V lie in the blocks
        self.num_cached_tokens = 0  # prompt tokens found in the prefix cache when first scheduled
        self.prompt_scores: list[TokenLogprobs] | None = None if request.prompt_logprobs is None else []
        self.pooling = pooling  # of the prompt's hidden states; None: not wanted, or delivered
        self.times = SequenceTimes()
        self.num_accepted = 0  # output tokens that were proposed
        self.num_rejected = 0  # proposed tokens that were wrong
        # written by the drafter
        self.draft: SequenceDraft | None = None
        # written by the block manager
        self.block_table: list[int] = []
        self.block_hashes: list[bytes] = []  # of the leading full blocks of `tokens`
        self.num_registered_blocks = 0  # leading blocks that the prefix cache knows about

    @property
    def reads_whole_prompt(self) -> bool:
        """Whether results of every prompt token are wanted: nothing may be skipped."""
        return self.prompt_scores is not None or self.pooling is not None

    @property
    def rank(self) -> tuple[int, int]:
        """Key of every order: lower ones start first and are preempted last."""
        return self.request.priority, self.index

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def output(self) -> list[int]:
        """Tokens generated so far."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def num_uncomputed(self) -> int:
        """Known tokens without K and V: 1 while decoding, more while prefilling."""
        return len(self.tokens) - self.num_computed

    @property
    def is_finished(self) -> bool:
        """Whether no more events follow."""
        return self.status is SequenceStatus.FINISHED
