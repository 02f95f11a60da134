"""Continuous batching: which tokens of which sequences the next step computes."""

from __future__ import annotations

import math
import time
from bisect import insort
from collections import abc, deque
from itertools import islice

from flashlet.model.sampling import TokenLogprobs
from flashlet.model.step import SliceOutput
from flashlet.serving.engine.block_manager import BlockManager
from flashlet.serving.engine.config import EngineConfig
from flashlet.serving.engine.drafting import Drafter
from flashlet.serving.engine.plan import Part, Plan
from flashlet.serving.engine.request import TokenEvent
from flashlet.serving.engine.sequence import Sequence, SequenceStatus
from flashlet.serving.engine.stats import Counters
from flashlet.serving.engine.step_budget import StepBudget
from flashlet.serving.engine.step_times import StepTimes
from flashlet.serving.engine.token_events import prompt_event, token_event
from flashlet.serving.errors import RequestError


class Scheduler:
    """Decides each step and writes its results back.

    Running sequences decode in every step. What the token budget leaves goes to prompt chunks, by rank: by
    priority, then first come first served. When blocks run out, the sequence of the last rank gives up its
    blocks and waits to be recomputed; the first one always gets on, so each sequence ends. Proposed tokens
    take what is left then.

    While a prompt is to be computed, sequences with a larger priority number sit out, and they give up their
    blocks and places to it. Those with a number above 0 come in short steps: see step_budget.py.
    """

    def __init__(
        self,
        config: EngineConfig,
        blocks: BlockManager,
        drafter: Drafter | None = None,
        times: StepTimes | None = None,
    ) -> None:
        self.config = config
        self.blocks = blocks
        self.drafter = drafter
        self.times = times or StepTimes()
        self.budget = StepBudget(config, self.times)
        self.waiting: deque[Sequence] = deque()  # in order of rank, like `running`
        self.running: list[Sequence] = []
        self.counters = Counters()
        self._level = math.inf  # largest priority number that takes part in the step

    @property
    def has_prompts(self) -> bool:
        """Whether a prompt is to be computed, beyond its last token."""
        return self._find_level() < math.inf

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        insort(self.waiting, sequence, key=_rank)

    def schedule(self) -> Plan:
        """Decide one step. It is empty only if there is no sequence."""
        plan = Plan()
        self._level = self._find_level()
        self.budget.begin(self._level)
        self._schedule_decodes(plan)
        if self.waiting or self._level < math.inf:
            self._admit(plan, self._schedule_prefills(plan, self.budget.prefill(self._prompt_context())))
        if self.drafter is not None:
            self._speculate(plan, self.drafter)
        return plan

    def update(
        self, plan: Plan, outputs: abc.Sequence[SliceOutput]
    ) -> list[tuple[Sequence, TokenEvent | RequestError]]:
        """Write the results of `plan` to its sequences; return what their clients should see."""
        now = time.perf_counter()
        events: list[tuple[Sequence, TokenEvent | RequestError]] = []
        self.counters.steps += 1
        for part, output in zip(plan.parts, outputs, strict=True):
            sequence = part.sequence
            self._advance(sequence, part.num_tokens)
            if sequence.pooling is not None:
                assert output.features is not None
                sequence.pooling.push(output.features)
            if sequence.prompt_scores is not None:
                sequence.prompt_scores.extend(output.target_logprobs)
            if self.drafter is not None:
                self.drafter.learn(part, output)
            if sequence.num_uncomputed:
                continue
            if sequence.reads_whole_prompt or sequence.max_tokens == 0:
                events.append((sequence, self._end_of_prompt(sequence)))
            if part.samples:
                events += [(sequence, event) for event in self._append_tokens(part, output, now)]
        return events

    def remove(self, sequence: Sequence) -> None:
        """End `sequence`, whatever it was doing, and free its blocks. Harmless if it has ended."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self.blocks.free(sequence)
        elif sequence.status is SequenceStatus.WAITING:
            self.waiting.remove(sequence)
        sequence.status = SequenceStatus.FINISHED

    def check_integrity(self) -> None:
        """Check that running sequences hold the used blocks, and nobody else; AssertionError otherwise."""
        assert not any(sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        self.blocks.check_integrity(self.running)

    def _find_level(self) -> float:
        """The smallest priority number with a prompt to compute."""
        prompts = [*islice(self.waiting, 1), *(item for item in self.running if item.num_uncomputed > 1)]
        return min((item.request.priority for item in prompts), default=math.inf)

    def _prompt_context(self) -> int:
        """Computed tokens of the prompt that comes next; 0 if it has not begun."""
        prompts = (item for item in self.running if item.num_uncomputed > 1)
        return next((item.num_computed for item in prompts if self._takes_part(item)), 0)

    def _takes_part(self, sequence: Sequence) -> bool:
        """Whether the step may compute anything of `sequence`. Those for which it may not run last."""
        return sequence.request.priority <= self._level

    def _schedule_decodes(self, plan: Plan) -> None:
        """A row for each running sequence with one uncomputed token: its newest, or its prompt's last."""
        index = 0
        # Preemption shortens the list, from its end. Who sits out stands there, too.
        while index < len(self.running) and self._takes_part(self.running[index]):
            sequence = self.running[index]
            is_next = sequence.num_uncomputed == 1 and self.budget.admits(sequence)
            if is_next and self._make_room(sequence):
                self.blocks.append(sequence)
                plan.add(sequence, 1)
            index += 1

    def _schedule_prefills(self, plan: Plan, budget: int) -> int:
        """Next chunks of running sequences whose prompt is not done; returns what is left of `budget`."""
        for sequence in self.running:
            if budget > 0 and sequence.num_uncomputed > 1 and self._takes_part(sequence):
                num_tokens = min(sequence.num_uncomputed, budget)
                plan.add(sequence, num_tokens)
                budget -= num_tokens
        return budget

    def _admit(self, plan: Plan, budget: int) -> None:
        """Start waiting sequences, in order, while tokens, blocks and `max_sequences` allow."""
        passed_over = 0
        while budget > 0 and passed_over < len(self.waiting):
            sequence = self.waiting[passed_over]
            if not self._takes_part(sequence):
                return
            prefix = [] if sequence.reads_whole_prompt else self.blocks.find_prefix(sequence)
            if not sequence.reads_whole_prompt and self._is_awaited(sequence, prefix):
                passed_over += 1  # the block will be there in a moment: do not compute it twice
                continue
            while not self._fits(sequence, prefix, passed_over):
                if not self._displace(sequence):
                    return
            beginning = None if sequence.reads_whole_prompt else self.blocks.find_beginning(sequence, prefix)
            self._start(sequence, prefix, beginning.num_tokens if beginning else 0)
            del self.waiting[passed_over]
            num_tokens = min(sequence.num_uncomputed, budget)
            plan.add(sequence, num_tokens, beginning.block if beginning else None)
            budget -= num_tokens

    def _is_awaited(self, sequence: Sequence, prefix: list[int]) -> bool:
        """Whether a sequence that takes part is about to compute the block behind `prefix`."""
        if not self.blocks.is_computing(sequence, prefix):
            return False
        awaited = sequence.block_hashes[len(prefix)]
        return self._takes_part(self.running[-1]) or any(
            self._takes_part(other) and awaited in other.block_hashes[other.num_registered_blocks :]
            for other in self.running
        )

    def _fits(self, sequence: Sequence, prefix: list[int], num_reserved: int) -> bool:
        """Whether `sequence` may run, with so many places kept for those before it."""
        # A block to grow into for each sequence: who gets in now is not preempted right after.
        headroom = len(self.running) + 1 if self.running else 0
        has_place = len(self.running) + num_reserved < self.config.max_sequences
        return has_place and self.blocks.can_allocate(sequence, prefix, headroom)

    def _displace(self, sequence: Sequence) -> bool:
        """Preempt one sequence of a larger priority number, which sits out; False if there is none."""
        if not self.running or self.running[-1].request.priority <= sequence.request.priority:
            return False
        self._preempt(self.running[-1])
        return True

    def _start(self, sequence: Sequence, prefix: list[int], num_copied: int) -> None:
        """Move `sequence` to the running ones, its computed length `num_copied` tokens behind the prefix."""
        self.blocks.allocate(sequence, prefix)
        sequence.num_computed = len(prefix) * self.blocks.block_size + num_copied
        sequence.status = SequenceStatus.RUNNING
        insort(self.running, sequence, key=_rank)
        if sequence.times.first_scheduled is None:
            sequence.times.first_scheduled = time.perf_counter()
            sequence.num_cached_tokens = sequence.num_computed
            self.counters.prompt_tokens += sequence.num_prompt_tokens
            if self.config.enable_prefix_cache and not sequence.reads_whole_prompt:
                self.counters.prefix_queries += sequence.num_prompt_tokens
                self.counters.prefix_hits += sequence.num_cached_tokens

    def _speculate(self, plan: Plan, drafter: Drafter) -> None:
        """Let decoding sequences of the first priority bring proposals, as far as there is room."""
        first = min((part.sequence.request.priority for part in plan.parts), default=0)
        may_propose = first <= 0 or not self.budget.is_hasty
        for part in plan.parts:
            part.may_propose = may_propose and part.sequence.request.priority == first
        drafter.plan(plan.parts, self.budget.proposals(plan, drafter.costs))
        for part in plan.parts:
            if part.proposed:
                part.proposed = part.proposed[: self.blocks.num_spare_slots(part.sequence)]
                self.blocks.append(part.sequence, len(part.proposed))

    def _advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Count `num_tokens` more tokens as computed."""
        sequence.num_computed += num_tokens
        if sequence.pooling is None:  # a pile of documents shall not drive prompts from the cache
            self.blocks.register(sequence)

    def _make_room(self, sequence: Sequence) -> bool:
        """Preempt until `sequence` can hold its last token; False if it had to give way itself."""
        while not self.blocks.can_append(sequence):
            last = self.running[-1]
            self._preempt(last)
            if last is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Take the blocks of `sequence`; it waits, by rank, to be computed again."""
        self.remove(sequence)
        sequence.num_computed = 0
        sequence.status = SequenceStatus.WAITING
        if sequence.draft is not None:
            sequence.draft.forget()
        if sequence.prompt_scores is not None:
            sequence.prompt_scores.clear()
        if sequence.pooling is not None:
            sequence.pooling.clear()
        insort(self.waiting, sequence, key=_rank)
        self.counters.preemptions += 1

    def _end_of_prompt(self, sequence: Sequence) -> TokenEvent:
        """Deliver what was asked about the prompt; the end, if nothing is to be generated."""
        event = prompt_event(sequence)
        sequence.prompt_scores = sequence.pooling = None
        if event.finish_reason is not None:
            self.remove(sequence)
        return event

    def _append_tokens(self, part: Part, output: SliceOutput, now: float) -> list[TokenEvent | RequestError]:
        """Append the accepted proposals and the token after them, up to one that ends the sequence."""
        sequence, num_accepted = part.sequence, len(output.token_ids) - 1
        if part.proposed:
            self.counters.count_draft(len(part.proposed), num_accepted)
        events: list[TokenEvent | RequestError] = []
        for index, token_id in enumerate(output.token_ids):
            if index > 0:
                self._advance(sequence, 1)  # the token before was proposed, and so has been computed
            if index < num_accepted:
                sequence.num_accepted += 1
            else:
                sequence.num_rejected += len(part.proposed) - num_accepted
            events.append(self._append_token(sequence, token_id, output.logprobs[index : index + 1], now))
            if sequence.is_finished:
                return events
        self.blocks.trim(sequence)
        return events

    def _append_token(
        self, sequence: Sequence, token_id: int, logprobs: abc.Sequence[TokenLogprobs], now: float
    ) -> TokenEvent | RequestError:
        """Append `token_id` and end the sequence if that was its last, or if its constraint fails."""
        if sequence.constraint is not None:
            try:
                sequence.constraint.push(token_id)
            except RequestError as error:
                self.remove(sequence)
                return error
        sequence.tokens.append(token_id)
        self.counters.generation_tokens += 1
        if sequence.times.first_token is None:
            sequence.times.first_token = now
        sequence.times.last_token = now
        text, reason = sequence.stop_checker.push(token_id, sequence.num_output_tokens)
        if reason is not None:
            self.remove(sequence)
        return token_event(sequence, token_id, text, reason, logprobs[0] if logprobs else None)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
