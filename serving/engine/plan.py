"""What one step computes, sequence by sequence, and how the executor is told."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass, field

from flashlet.model.sampling import SampleRequest
from flashlet.model.step import DraftRequest, SequenceSlice, Step
from flashlet.serving.engine.sequence import Sequence


@dataclass(slots=True)
class Part:
    """The next tokens of one sequence."""

    sequence: Sequence
    num_tokens: int  # of the known ones
    samples: bool  # whether it brings a new token
    decodes: bool  # whether it is one row for one new token, behind which proposals may stand
    may_propose: bool = True  # proposals of others would make a step longer for those that matter more
    proposed: abc.Sequence[int] = ()  # tokens to verify behind them
    draft: DraftRequest | None = None
    copied_block: int | None = None  # whose beginning the first block that is written to starts with

    @property
    def num_rows(self) -> int:
        """Rows of the forward pass."""
        return self.num_tokens + len(self.proposed)

    def slice(self) -> SequenceSlice:
        """The executor's view. Proposals that the sequence's constraint rules out are dropped here."""
        sequence = self.sequence
        start = sequence.num_computed
        end = start + self.num_tokens
        scored = sequence.prompt_scores is not None
        samples = self._sample_requests() if self.samples else ()
        return SequenceSlice(
            token_ids=sequence.tokens[start:end],
            start=start,
            block_table=sequence.block_table,
            samples=samples,
            proposed=self.proposed,
            draft=self.draft,
            copied_block=self.copied_block,
            logprob_targets=sequence.tokens[start + 1 : end + 1] if scored else (),
            num_top_logprobs=sequence.request.prompt_logprobs or 0 if scored else 0,
            features=() if sequence.pooling is None else (sequence.pooling.feature,),
        )

    def _sample_requests(self) -> list[SampleRequest]:
        """Ask for the token after the last one, and after each proposal.

        Everything in a request follows from the prefix (the proposals before it included) and the parameters.
        """
        sequence, params = self.sequence, self.sequence.request.sampling
        constraint, needs_history = sequence.constraint, params.needs_history
        masks = None if constraint is None else constraint.masks(self.proposed)
        if masks is not None:
            self.proposed = self.proposed[: len(masks) - 1]
        output = sequence.output if needs_history else ()
        length = len(sequence.tokens)
        still_needed = sequence.request.min_tokens - sequence.num_output_tokens if constraint is None else 0
        return [
            SampleRequest(
                params=params,
                position=length + i,
                prompt=sequence.request.prompt if needs_history else (),
                output=[*output, *self.proposed[:i]] if needs_history else (),
                suppressed=sequence.stop_token_ids if i < still_needed else (),
                allowed=None if masks is None else masks[i],
            )
            for i in range(1 + len(self.proposed))
        ]


@dataclass(slots=True)
class Plan:
    """One step."""

    parts: list[Part] = field(default_factory=list)

    def add(self, sequence: Sequence, num_tokens: int, copied_block: int | None = None) -> None:
        """Let the step compute the next `num_tokens` tokens of `sequence`."""
        samples = num_tokens == sequence.num_uncomputed and sequence.max_tokens > 0
        decodes = samples and num_tokens == 1 and not sequence.reads_whole_prompt
        self.parts.append(Part(sequence, num_tokens, samples, decodes, copied_block=copied_block))

    @property
    def num_rows(self) -> int:
        """Rows of the forward pass."""
        return sum(part.num_rows for part in self.parts)

    def step(self) -> Step:
        """The executor's view."""
        return Step([part.slice() for part in self.parts])
