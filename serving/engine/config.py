"""What the user may choose about scheduling."""

from __future__ import annotations

from dataclasses import dataclass

from flashlet.model.errors import FlashletError
from flashlet.serving.engine.request import Drafting


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the engine. Raises FlashletError for values under which it could not make progress."""

    max_waiting: int = 256  # sequences that may queue beyond those that run
    max_sequences: int = 64  # most running sequences, and so most slices in one step
    max_step_tokens: int = 512  # most tokens in one step
    prefill_chunk: int = 64  # most prompt tokens in a step in which any sequence decodes, if that is quick
    enable_prefix_cache: bool = True
    draft: Drafting = "none"  # who proposes tokens: auto is the draft model, if there is one, and n-grams
    context_length: int | None = None  # most tokens of one sequence, if less than the model's own limit

    def __post_init__(self) -> None:
        for name in ("max_waiting", "max_sequences", "max_step_tokens", "prefill_chunk"):
            value = getattr(self, name)
            if value < 1:
                raise FlashletError(f"{name}: expected at least 1, got {value}")
        if self.max_step_tokens < self.max_sequences:
            raise FlashletError(
                f"max_step_tokens: expected at least max_sequences ({self.max_sequences}), so that every "
                f"running sequence can decode in each step, got {self.max_step_tokens}"
            )
