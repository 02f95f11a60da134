"""Answers from a model in this process, streamed as text."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from flashlet.model.errors import ChatTemplateError
from flashlet.serving.engine.request import GenerationRequest
from flashlet.serving.errors import RequestError
from flashlet.serving.loading import LoadedEngine

Message = dict[str, str]  # role and content


class AnswerSource(Protocol):
    """Whatever can continue a conversation."""

    def stream(self, messages: Sequence[Message]) -> Iterator[str]:
        """Yield the answer piece by piece; FlashletError if that fails, KeyboardInterrupt on Ctrl-C."""


class LocalAnswers:
    """Runs the engine in the calling thread, one answer at a time."""

    def __init__(self, loaded: LoadedEngine, request: Callable[[tuple[int, ...]], GenerationRequest]) -> None:
        """`request` makes the request for a prompt."""
        self._loaded = loaded
        self._request = request

    def stream(self, messages: Sequence[Message]) -> Iterator[str]:
        """Yield the answer to a conversation.

        Raises:
            ChatTemplateError: the model has no template, or it refuses the messages.
            RequestError: the prompt is too long, or the engine fails.
            KeyboardInterrupt: on Ctrl-C, after the current step.
        """
        template = self._loaded.chat_template
        if template is None:
            raise ChatTemplateError("the model has no chat template: use `flashlet generate`")
        text = template.render(list(messages), add_generation_prompt=True)
        yield from self.complete(tuple(self._loaded.tokenizer.encode(text, add_special_tokens=False)))

    def complete(self, prompt: tuple[int, ...]) -> Iterator[str]:
        """Yield what follows the token ids of `prompt`; raises as `stream` does."""
        engine = self._loaded.engine
        sequence = engine.submit(self._request(prompt))
        try:
            with _deferred_interrupt() as interrupted:
                while engine.has_work:
                    if interrupted():
                        raise KeyboardInterrupt
                    for _, event in engine.step():
                        if isinstance(event, RequestError):
                            raise event
                        yield event.text
        finally:
            engine.cancel(sequence)


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let a step finish before Ctrl-C takes effect; yields whether it was pressed. Main thread only."""
    pressed = False

    def note(signum: int, frame: object) -> None:
        nonlocal pressed
        pressed = True

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
