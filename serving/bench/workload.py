"""Made-up sequences in the KV pool of an executor: prefilled once, continued any number of times."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flashlet.model.errors import OutOfMemoryError
from flashlet.model.executor import Executor
from flashlet.model.sampling import SampleRequest, SamplingParams
from flashlet.model.step import SequenceSlice, Step

_GREEDY = SamplingParams(temperature=0)


class Workload:
    """`count` sequences whose first `context` tokens are fixed; greedy tokens follow.

    Sequence i has the same tokens in every workload of the same context, so results can be compared.
    """

    def __init__(
        self,
        executor: Executor,
        first_block: int,
        count: int,
        context: int,
        new_tokens: int,
        max_step_tokens: int,
    ) -> None:
        """Take `num_blocks` blocks from `first_block` on, with room for `new_tokens` after the context.

        Raises OutOfMemoryError if the pool ends before.
        """
        self._executor = executor
        self._max_step_tokens = max_step_tokens
        per_sequence = -(-(context + new_tokens) // executor.block_size)
        self.count = count
        self.context = context
        self.num_blocks = count * per_sequence
        if first_block + self.num_blocks > executor.num_blocks:
            raise OutOfMemoryError(
                f"KV cache: expected {first_block + self.num_blocks} blocks, "
                f"the pool has {executor.num_blocks}"
            )
        starts = range(first_block, first_block + self.num_blocks, per_sequence)
        self._tables = [range(start, start + per_sequence) for start in starts]
        self._prompts = [_prompt(i, context, executor.config.vocab_size) for i in range(count)]
        self._first_tokens = [-1] * count

    def prefill(self) -> list[int]:
        """Compute the contexts, sequence by sequence; the first new token of each."""
        for index, prompt in enumerate(self._prompts):
            for start in range(0, self.context, self._max_step_tokens):
                part = prompt[start : start + self._max_step_tokens]
                self._first_tokens[index] = self._run([(index, part, start)])[0]
        return list(self._first_tokens)

    def decode(
        self, batch_size: int, num_steps: int, around_step: Callable[[Callable[[], None]], None]
    ) -> list[int]:
        """Continue the first `batch_size` sequences, rewound to their contexts, by `num_steps` tokens each.

        `around_step` is called with each step and runs it. Returns the tokens, step by step.
        """
        tokens = self._first_tokens[:batch_size]
        made: list[int] = []

        def step() -> None:
            nonlocal tokens
            position = self.context + len(made) // batch_size
            tokens = self._run([(index, (token,), position) for index, token in enumerate(tokens)])

        for _ in range(num_steps):
            around_step(step)
            made += tokens
        return made

    def _run(self, parts: Iterable[tuple[int, tuple[int, ...], int]]) -> list[int]:
        """One step over (sequence, tokens, position of the first); the token that follows each."""
        slices = [
            SequenceSlice(
                tokens, start, self._tables[index], [SampleRequest(_GREEDY, position=start + len(tokens))]
            )
            for index, tokens, start in parts
        ]
        return [output.token_ids[0] for output in self._executor.execute(Step(slices))]


def _prompt(sequence: int, length: int, vocab_size: int) -> tuple[int, ...]:
    """Token ids that look random and are the same everywhere."""
    return tuple(
        (7919 * position * position + 104_729 * (sequence + 1)) % vocab_size for position in range(length)
    )
