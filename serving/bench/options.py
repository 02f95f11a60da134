"""What `flashlet bench` measures."""

from __future__ import annotations

from dataclasses import dataclass

from flashlet.model.config import ModelConfig
from flashlet.model.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure; lengths are in tokens."""

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    prompt_tokens: int = 512  # of the prefill
    context: int = 100  # before the decoded tokens
    long_context: int | None = (
        None  # a second context for one sequence; None: 4,000 or what the model holds; 0: none
    )
    decode_tokens: int = 32
    repeats: int = 5
    max_step_tokens: int = 512

    def second_context(self, config: ModelConfig) -> int:
        """Tokens of the long context; 0 if it would not be longer than the other."""
        if self.long_context is not None:
            return self.long_context
        longest = min(4000, config.context_length - self.decode_tokens)
        return longest if longest > self.context else 0

    def check(self, config: ModelConfig) -> None:
        """Raise UnsupportedModelError if the model's context is too short."""
        longest = max(self.prompt_tokens, self.context + self.decode_tokens, self._long(config))
        if longest > config.context_length:
            raise UnsupportedModelError(
                f"the longest sequence is {config.context_length} tokens, the benchmark needs {longest}"
            )

    def kv_tokens(self, config: ModelConfig, block_size: int) -> int:
        """Tokens of KV pool that the run needs."""
        lengths = [self.context + self.decode_tokens] * max(self.batch_sizes)
        lengths += [self.prompt_tokens, self._long(config)]
        return sum(-(-length // block_size) for length in lengths) * block_size

    def _long(self, config: ModelConfig) -> int:
        context = self.second_context(config)
        return context + self.decode_tokens if context else 0
